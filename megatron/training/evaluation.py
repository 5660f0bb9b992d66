"""Evaluation: the same samples with the same masks every time, so that figures of a run can be compared."""

from __future__ import annotations

import torch

from megatron.config import PretrainConfig
from megatron.data.batches import Split, evaluation_batches
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.training.signals import StopFlag
from megatron.training.step import Totals, count, forward, reduced, sums_of


def evaluation_samples(split: Split, config: PretrainConfig) -> int:
    """Samples of one evaluation: --eval-iters global batches, at most one epoch of the split."""
    epoch = sum(split.samples_per_epoch)
    return min(config.training.eval_iters * config.training.global_batch_size, epoch)


@torch.no_grad()
def evaluate(
    model: BertForPreTraining, split: Split, config: PretrainConfig, context: ParallelContext, stop: StopFlag
) -> Totals | None:
    """Totals over the split's evaluation samples; None if a stop was asked for on any rank meanwhile."""
    batches = evaluation_batches(
        split,
        samples=evaluation_samples(split, config),
        micro_batch_size=config.training.micro_batch_size,
        rank=context.data.rank,
        size=context.data.size,
    )
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    own = []
    model.eval()
    for batch in batches:
        own.append(batch)
        if not stop.asked:  # ranks may have unequal numbers of batches: agree once, after the loop
            sums += sums_of(forward(model, batch, context, None))
    model.train()
    if stop.agreed(context):
        return None
    return reduced(sums, count(own, context), context)
