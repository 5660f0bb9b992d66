#!/usr/bin/env python
"""Fine-tune a checkpoint on a task of CLUE or on your own files, evaluate it, and write submission files."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.errors import main_guard
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import ADVICE, FinetuneConfig
from megatron.tasks.finetune import finetune
from megatron.training.agreement import check_start


def main() -> None:
    """Parse the command line and run; under torchrun over its processes, in the layout that the flags say."""
    config = parse(FinetuneConfig, prog="finetune_clue.py", description=str(__doc__), advice=ADVICE)
    with ParallelContext.from_environment(config.parallel, agree=lambda job: check_start(job, config)) as context:
        finetune(config, context)


if __name__ == "__main__":
    main_guard(main)
