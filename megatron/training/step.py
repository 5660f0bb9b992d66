"""One step of pre-training, and the sums that travel with it.

Losses are sums over the global batch divided by the step's own counts, which are known before the first forward. So
gradient accumulation, the division over ranks and uneven numbers of masked tokens cannot change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron.config import ModelConfig
from megatron.data.batches import Batch
from megatron.model import BertForPreTraining, LossSums
from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import local_heads
from megatron.mpu.random import DropoutKeys, dropout_keys
from megatron.optimizer.adamw import Optimizer, Outcome


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over some samples: of losses (nats), hits, and what they are divided by. tokens: without padding."""

    mlm: float = 0.0
    mlm_hits: float = 0.0
    masked: float = 0.0
    sop: float = 0.0
    sop_hits: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def count(batches: Sequence[Batch], context: ParallelContext) -> Totals:
    """The counts of a step over all data-parallel ranks; each rank gives its part of the batch."""
    counts = [
        sum(len(batch.masked_positions) for batch in batches),
        sum(len(batch.samples) for batch in batches),
        sum(int(batch.lengths.sum()) for batch in batches),
    ]
    masked, samples, tokens = context.data.all_reduce_(
        torch.tensor(counts, dtype=torch.float64, device=context.device)
    ).tolist()
    return Totals(masked=masked, samples=samples, tokens=tokens)


def forward(model: BertForPreTraining, batch: Batch, context: ParallelContext, keys: DropoutKeys | None) -> LossSums:
    """The loss sums of a micro-batch."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(getattr(batch, name)).to(context.device, non_blocking=True)

    return model(
        tensor("tokens"),
        tensor("token_types"),
        tensor("lengths"),
        tensor("masked_positions"),
        tensor("masked_labels"),
        tensor("sop_labels"),
        keys,
    )


def sums_of(losses: LossSums) -> torch.Tensor:
    """The four sums of a micro-batch as one detached fp64 tensor."""
    return torch.stack([losses.mlm, losses.mlm_hits, losses.sop, losses.sop_hits]).detach().double()


def reduced(sums: torch.Tensor, counts: Totals, context: ParallelContext) -> Totals:
    """The totals of a step: each rank gives the sums of its micro-batches."""
    mlm, mlm_hits, sop, sop_hits = context.data.all_reduce_(sums).tolist()
    return counts + Totals(mlm=mlm, mlm_hits=mlm_hits, sop=sop, sop_hits=sop_hits)


def train_step(
    model: BertForPreTraining,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    *,
    config: ModelConfig,
    seed: int,
    context: ParallelContext,
) -> tuple[Totals, Outcome]:
    """Forward and backward over this rank's micro-batches of a global batch, then the update."""
    counts = count(batches, context)
    optimizer.zero_gradients()
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    first_head, heads = local_heads(config.num_attention_heads, context)
    for batch in batches:
        samples = torch.from_numpy(batch.samples).to(context.device)
        keys = dropout_keys(seed, samples, sequence=batch.tokens.shape[1], first_head=first_head, heads=heads)
        losses = forward(model, batch, context, keys)
        loss = losses.mlm / counts.masked + losses.sop / counts.samples
        (loss * optimizer.loss_scale.scale).backward()
        sums += sums_of(losses)
    return reduced(sums, counts, context), optimizer.step(learning_rate)
