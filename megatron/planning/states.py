"""What a rank holds all the time: weights, gradients, master weights and moments, to the byte.

Exact because nothing is modelled: the rank's parts are built on the meta device, which has shapes and no numbers, and
laid out by the function that lays out the real buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from megatron.config import ModelConfig
from megatron.model import BertForPreTraining
from megatron.model.parts import ModelPart
from megatron.mpu.context import ParallelContext
from megatron.mpu.grads import BucketLayout, bucket_layouts
from megatron.mpu.group import Group
from megatron.mpu.layout import Layout
from megatron.planning.case import Case


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of a rank's buckets. masters: fp32 weights beside 16-bit ones, 0 in fp32."""

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def optimizer(self) -> int:
        """What the optimizer alone needs."""
        return self.masters + self.moments

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.masters + self.moments


def shape_context(layout: Layout, rank: int, *, sequence_parallel: bool) -> ParallelContext:
    """The place of a rank, without processes: enough to know shapes, on the meta device."""
    pipeline, data, tensor = layout.coordinates(rank)
    ends = (0, layout.pipeline - 1)
    tied = layout.pipeline > 1 and pipeline in ends
    return ParallelContext(
        layout=layout,
        rank=rank,
        tensor=Group(name="tensor", rank=tensor, size=layout.tensor),
        data=Group(name="data", rank=data, size=layout.data),
        pipeline=Group(name="pipeline", rank=pipeline, size=layout.pipeline),
        embedding=Group(name="embedding", rank=ends.index(pipeline), size=2) if tied else Group(name="embedding"),
        sequence_parallel=sequence_parallel and layout.tensor > 1,
        device=torch.device("meta"),
    )


def meta_chunks(model: ModelConfig, parts: Sequence[ModelPart], context: ParallelContext) -> list[BertForPreTraining]:
    """A stage's parts of the model, with shapes and without numbers."""
    with torch.device("meta"):
        return [BertForPreTraining(model, context, part) for part in parts]


def rank_buckets(case: Case, rank: int) -> list[BucketLayout]:
    """The buckets of a rank as its optimizer lays them out."""
    return _buckets(case.model, case.parts(case.layout.coordinates(rank)[0]), case.layout, rank, *_options(case))


def _options(case: Case) -> tuple[bool, bool, int]:
    return case.sequence_parallel, case.parallel.use_distributed_optimizer, case.parallel.ddp_bucket_size


@lru_cache(maxsize=64)
def _buckets(
    model: ModelConfig,
    parts: tuple[ModelPart, ...],
    layout: Layout,
    rank: int,
    sequence_parallel: bool,
    sharded: bool,
    bucket_size: int,
) -> list[BucketLayout]:
    context = shape_context(layout, rank, sequence_parallel=sequence_parallel)
    chunks = meta_chunks(model, parts, context)
    return bucket_layouts(chunks, context, sharded=sharded, bucket_size=bucket_size)


def state_bytes(case: Case, stage: int) -> StateBytes:
    """What every rank of a pipeline stage holds: blocks of the tensor group are padded to equal size, ZeRO's too."""
    return _state_bytes(case.model, case.parts(stage), case.layout, stage, case.element, *_options(case))


@lru_cache(maxsize=4096)
def _state_bytes(
    model: ModelConfig, parts: tuple[ModelPart, ...], layout: Layout, stage: int, element: int, *options: int
) -> StateBytes:
    buckets = _buckets(model, parts, layout, layout.rank(stage, 0, 0), *options)
    size = sum(bucket.size for bucket in buckets)
    own = sum(bucket.own.stop - bucket.own.start for bucket in buckets)
    return StateBytes(
        weights=element * size, gradients=4 * size, masters=0 if element == 4 else 4 * own, moments=8 * own
    )
