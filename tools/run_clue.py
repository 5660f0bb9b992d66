"""All tasks of CLUE or FewCLUE in one command: a grid of hyper-parameters, one table, the archive for the server.

Flags of finetune_clue.py for every run follow after `--`. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron.arguments import parse
from megatron.errors import main_guard
from megatron.tasks.benchmark.config import BenchmarkConfig, split_arguments
from megatron.tasks.benchmark.run import run_benchmark

SCRIPT = Path(__file__).resolve().parent.parent / "finetune_clue.py"


def main() -> None:
    arguments, flags = split_arguments(sys.argv[1:])
    config = parse(BenchmarkConfig, arguments, prog="run_clue.py", description=str(__doc__))
    run_benchmark(config, flags, SCRIPT)


if __name__ == "__main__":
    main_guard(main)
