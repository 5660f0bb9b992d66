"""One step of pre-training, and the sums that travel with it.

Losses are sums over the global batch divided by the step's own counts, which are known before the first forward. So
gradient accumulation, the division over ranks and uneven numbers of masked tokens cannot change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.data.batches import Batch
from megatron.mpu.context import ParallelContext
from megatron.mpu.pipeline.executor import Timed
from megatron.mpu.random import dropout_keys
from megatron.mpu.spans import OPTIMIZER, span
from megatron.optimizer.adamw import Optimizer, Outcome
from megatron.training.graphs import MicroBatchGraph
from megatron.training.model import Pretraining, boundary, call, on_device


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over some samples: of losses (nats), hits, and what they are divided by.

    tokens: without padding; squared_lengths: of the samples' tokens, what attention costs.
    """

    mlm: float = 0.0
    mlm_hits: float = 0.0
    masked: float = 0.0
    sop: float = 0.0
    sop_hits: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    squared_lengths: float = 0.0

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
        sum(int((batch.lengths**2).sum()) for batch in batches),
    ]
    device = context.device if context.data.size > 1 else torch.device("cpu")  # a GPU would have to be waited for
    masked, samples, tokens, squared_lengths = context.data.all_reduce_(
        torch.tensor(counts, dtype=torch.float64, device=device)
    ).tolist()
    return Totals(masked=masked, samples=samples, tokens=tokens, squared_lengths=squared_lengths)


def reduced(sums: Tensor, counts: Totals, context: ParallelContext) -> Totals:
    """The totals of a step: each rank gives the sums of its micro-batches."""
    context.pipeline.all_reduce_(sums)  # zero but on the last stage
    mlm, mlm_hits, sop, sop_hits = context.data.all_reduce_(sums).tolist()
    return counts + Totals(mlm=mlm, mlm_hits=mlm_hits, sop=sop, sop_hits=sop_hits)


def train_step(
    run: Pretraining,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    *,
    seed: int,
    graph: MicroBatchGraph | None = None,
) -> Step:
    """Forward and backward over this rank's micro-batches of a global batch, then the update.

    graph: what goes through the micro-batches, with the same seed, in place of the pipeline.
    """
    context = run.pipeline.context
    counts = count(batches, context)
    trace: list[Timed] = []
    if graph is None:
        sums, trace = _through_pipeline(run, optimizer, batches, counts, seed)
    else:
        sums = _through_graph(graph, optimizer, batches, counts)
    totals = reduced(sums, counts, context)
    with span(OPTIMIZER):
        outcome = optimizer.step(learning_rate)
    return Step(totals=totals, outcome=outcome, trace=trace)


def _through_graph(
    graph: MicroBatchGraph, optimizer: Optimizer, batches: Sequence[Batch], counts: Totals
) -> Tensor:
    # One more than there are: a replay tells nobody that gradients are there, so all are reduced at the end.
    optimizer.begin_step(len(batches) + 1)
    optimizer.flat.wait_for_weights()
    scale = optimizer.loss_scale.scale
    graph.sums.zero_()
    for batch in batches:
        graph.add(batch, mlm=scale / max(counts.masked, 1.0), sop=scale / counts.samples)
    return graph.sums.clone()


def _through_pipeline(
    run: Pretraining, optimizer: Optimizer, batches: Sequence[Batch], counts: Totals, seed: int
) -> tuple[Tensor, list[Timed]]:
    context = run.pipeline.context
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        batch = batches[number]
        samples = on_device(batch.samples, context.device)
        heads = run.config.num_attention_heads
        keys = dropout_keys(seed, samples, sequence=batch.tokens.shape[1], heads=heads, context=context)
        output = call(run.chunks[chunk], batch, context, keys, x)
        if isinstance(output, Tensor):
            return output
        sums.add_(output.stacked())
        return (output.mlm / max(counts.masked, 1.0) + output.sop / counts.samples) * optimizer.loss_scale.scale

    optimizer.begin_step(len(batches))
    return sums, run.pipeline.train(len(batches), forward, lambda number: boundary(run, batches[number]))


def evaluation_sums(run: Pretraining, batches: Sequence[Batch]) -> Tensor:
    """The four sums over this rank's micro-batches, without dropout and gradients."""
    context = run.pipeline.context
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        output = call(run.chunks[chunk], batches[number], context, None, x)
        if isinstance(output, Tensor):
            return output
        return sums.add_(output.stacked())

    run.pipeline.evaluate(len(batches), forward, lambda number: boundary(run, batches[number]))
    return sums
