"""Evaluation: the same samples with the same masks every time, so that figures of a run can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from megatron.config import PretrainConfig
from megatron.data.batches import Batch, Split, evaluation_batches
from megatron.mpu.context import ParallelContext
from megatron.training.model import Pretraining
from megatron.training.signals import StopFlag
from megatron.training.step import Totals, count, evaluation_sums, reduced


def evaluation_samples(split: Split, config: PretrainConfig) -> int:
    """Samples of one evaluation: --eval-iters global batches, at most one epoch of the split."""
    epoch = sum(split.samples_per_epoch)
    return min(config.training.eval_iters * config.training.global_batch_size, epoch)


def evaluate(
    model: Pretraining, split: Split, config: PretrainConfig, context: ParallelContext, stop: StopFlag
) -> Totals | None:
    """Totals over the split's evaluation samples; None if a stop was asked for on any rank meanwhile."""
    batches = evaluation_batches(
        split,
        samples=evaluation_samples(split, config),
        micro_batch_size=config.training.micro_batch_size,
        rank=context.data.rank,
        size=context.data.size,
    )
    own: list[Batch] = []
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    for some in _several(batches, context.layout.pipeline):
        own += some
        # Those that share a copy of the model have the same batches; others may have more: agree with them at the end.
        if not context.pipeline.any(context.tensor.any(stop.asked, context.device), context.device):
            sums += evaluation_sums(model, some)
    if stop.agreed(context):
        return None
    return reduced(sums, count(own, context), context)


def _several(batches: Iterator[Batch], stages: int) -> Iterator[list[Batch]]:
    """Enough micro-batches at a time to keep a pipeline busy."""
    while some := list(islice(batches, 1 if stages == 1 else 4 * stages)):
        yield some
