"""Whole tensors from the parts that ranks hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch

from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import ShardedTensor

Description: TypeAlias = tuple[tuple[int, ...], torch.dtype]


def gather_whole(
    tensors: Mapping[str, ShardedTensor], context: ParallelContext
) -> tuple[dict[str, Description], Iterator[tuple[str, torch.Tensor]]]:
    """The tensors of all stages, one by one on rank 0 in order of name; a collective of all ranks.

    Returns shapes and dtypes by name, and an iterator that every rank must run to its end; what it gives on other
    ranks is of no use. The stage that holds a tensor gathers it over its first tensor-parallel group and sends it to
    the first stage. Ranks that are not first in their data group have nothing to do.
    """
    described = {
        name: (part.shard.global_shape, part.tensor.dtype)
        for name, part in tensors.items()
        if not (part.shard.tied and context.embedding.rank > 0)
    }
    stages = context.pipeline.gather_objects(described)
    shapes = dict(sorted((name, shape) for stage in stages for name, shape in stage.items()))
    holder = {name: number for number, stage in enumerate(stages) for name in stage}
    names = list(shapes) if context.data.rank == 0 else []
    return shapes, ((name, _collected(name, shapes[name], holder[name], tensors, context)) for name in names)


def _collected(
    name: str, shape: Description, stage: int, tensors: Mapping[str, ShardedTensor], context: ParallelContext
) -> torch.Tensor:
    pipeline = context.pipeline
    if pipeline.rank == stage:
        tensor = _whole(tensors[name], context)
        if stage > 0 and context.tensor.rank == 0:
            pipeline.start_send(tensor.contiguous(), 0).wait()
        return tensor
    if not context.is_main:
        return torch.empty(0)
    tensor = torch.empty(shape[0], dtype=shape[1], device=context.device)
    pipeline.start_receive(tensor, stage).wait()
    return tensor


def _whole(part: ShardedTensor, context: ParallelContext) -> torch.Tensor:
    shard = part.shard
    if shard.dim is None:
        return part.tensor
    # Ranks hold equal blocks in order of rank, so that padding comes only after the last row of the global tensor.
    return context.tensor.all_gather(part.tensor, shard.dim).narrow(shard.dim, 0, shard.global_shape[shard.dim])
