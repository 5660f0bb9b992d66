#!/usr/bin/env python
"""Fine-tune a checkpoint on a task of CLUE or on your own files, evaluate it, and write submission files."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.errors import main_guard
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import ADVICE, FinetuneConfig
from megatron.tasks.finetune import finetune


def main() -> None:
    """Parse the command line and run; under torchrun, data parallel over its processes."""
    config = parse(FinetuneConfig, prog="finetune_clue.py", description=str(__doc__), advice=ADVICE)
    parallel = config.parallel
    context = ParallelContext.from_environment(
        tensor=parallel.tensor_model_parallel_size,
        pipeline=parallel.pipeline_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        backend=parallel.distributed_backend,
        timeout_minutes=parallel.distributed_timeout_minutes,
    )
    finetune(config, context)
    context.close()


if __name__ == "__main__":
    main_guard(main)
