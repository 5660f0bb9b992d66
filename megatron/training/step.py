"""One step of pre-training, and the sums that travel with it.

Losses are sums over the global batch divided by the step's own counts, which are known before the first forward. So
gradient accumulation, the division over ranks and uneven numbers of masked tokens cannot change the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.model import BertEncoder, BertForPreTraining, LossSums
from megatron.model.parts import Recompute, own_parts
from megatron.mpu.context import ParallelContext
from megatron.mpu.pipeline.executor import Pipeline, Timed, boundary_shape, new_pipeline
from megatron.mpu.random import DropoutKeys, dropout_keys
from megatron.mpu.sharding import initialize, shard_of
from megatron.optimizer.adamw import DTYPES, Optimizer, Outcome


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


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step came to. trace: the actions of this rank's stage."""

    totals: Totals
    outcome: Outcome
    trace: list[Timed]


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


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A stage's part of a model for pre-training, and how steps go through it."""

    config: ModelConfig
    chunks: Sequence[BertForPreTraining]
    pipeline: Pipeline


def build(
    config: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    seed: int,
    context: ParallelContext,
    *,
    traced: bool = False,
) -> Pretraining:
    """The chunks of this rank's stage with their initial weights."""
    recompute = Recompute.of(parallel)
    parts = own_parts(config, parallel, context.pipeline.rank)
    chunks = [BertForPreTraining(config, context, part, recompute) for part in parts]
    for chunk in chunks:
        initialize(chunk, seed)
    return Pretraining(
        config=config,
        chunks=chunks,
        pipeline=new_pipeline(chunks, parallel.schedule(config), DTYPES[precision.dtype], context, traced=traced),
    )


def num_parameters(chunks: Sequence[BertEncoder], context: ParallelContext) -> int:
    """Elements of the global tensors that this stage holds; a table that two stages hold counts on the first."""
    shards = [shard_of(parameter) for chunk in chunks for parameter in chunk.parameters()]
    return sum(math.prod(s.global_shape) for s in shards if not (s.tied and context.embedding.rank > 0))


def new_optimizer(
    chunks: Sequence[BertEncoder],
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    parallel: ParallelConfig,
    context: ParallelContext,
) -> Optimizer:
    """The optimizer of a stage's chunks."""
    return Optimizer(
        chunks,
        optimizer,
        precision,
        context,
        sharded=parallel.use_distributed_optimizer,
        bucket_size=parallel.ddp_bucket_size,
        units=[unit for chunk in chunks for unit in chunk.units()],
    )


def call(
    chunk: BertForPreTraining, batch: Batch, context: ParallelContext, keys: DropoutKeys | None, x: Tensor | None
) -> LossSums | Tensor:
    """A micro-batch through a chunk: hidden states, or the loss sums of the last one."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(getattr(batch, name)).to(context.device, non_blocking=True)

    return chunk(
        tensor("tokens"),
        tensor("token_types"),
        tensor("lengths"),
        tensor("masked_positions"),
        tensor("masked_labels"),
        tensor("sop_labels"),
        keys,
        x,
    )


def boundary(run: Pretraining, batch: Batch) -> tuple[int, ...]:
    """Shape of the hidden states of a micro-batch between chunks."""
    samples, sequence = batch.tokens.shape
    return boundary_shape(sequence, samples, run.config.hidden_size, run.pipeline.context)


def sums_of(losses: LossSums) -> Tensor:
    """The four sums of a micro-batch as one detached fp64 tensor."""
    return torch.stack([losses.mlm, losses.mlm_hits, losses.sop, losses.sop_hits]).detach().double()


def reduced(sums: Tensor, counts: Totals, context: ParallelContext) -> Totals:
    """The totals of a step: each rank gives the sums of its micro-batches."""
    context.pipeline.all_reduce_(sums)  # zero but on the last stage
    mlm, mlm_hits, sop, sop_hits = context.data.all_reduce_(sums).tolist()
    return counts + Totals(mlm=mlm, mlm_hits=mlm_hits, sop=sop, sop_hits=sop_hits)


def train_step(
    run: Pretraining, optimizer: Optimizer, batches: Sequence[Batch], learning_rate: float, *, seed: int
) -> Step:
    """Forward and backward over this rank's micro-batches of a global batch, then the update."""
    context = run.pipeline.context
    counts = count(batches, context)
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        batch = batches[number]
        samples = torch.from_numpy(batch.samples).to(context.device)
        heads = run.config.num_attention_heads
        keys = dropout_keys(seed, samples, sequence=batch.tokens.shape[1], heads=heads, context=context)
        output = call(run.chunks[chunk], batch, context, keys, x)
        if isinstance(output, Tensor):
            return output
        sums.add_(sums_of(output))
        return (output.mlm / counts.masked + output.sop / counts.samples) * optimizer.loss_scale.scale

    optimizer.begin_step(len(batches))
    trace = run.pipeline.train(len(batches), forward, lambda number: boundary(run, batches[number]))
    return Step(totals=reduced(sums, counts, context), outcome=optimizer.step(learning_rate), trace=trace)


def evaluation_sums(run: Pretraining, batches: Sequence[Batch]) -> Tensor:
    """The four sums over this rank's micro-batches, without dropout and gradients."""
    context = run.pipeline.context
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        output = call(run.chunks[chunk], batches[number], context, None, x)
        if isinstance(output, Tensor):
            return output
        return sums.add_(sums_of(output))

    run.pipeline.evaluate(len(batches), forward, lambda number: boundary(run, batches[number]))
    return sums
