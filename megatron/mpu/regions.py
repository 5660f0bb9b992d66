"""Conjugate pairs of communication at the borders of tensor-parallel regions.

Tensor parallelism: Megatron-LM (arXiv 1909.08053, 3). Sequence parallelism: Korthikanti et al. (arXiv 2205.05198),
where activations outside the divided linear layers are divided along dimension 0, the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron.mpu.group import Group


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        return group.all_reduce_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.reduce_scatter(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_gather(gradient, 0), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_gather(tensor, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.chunk(ctx.group.size)[ctx.group.rank], None


def reduce_from_tensor_region(tensor: Tensor, group: Group) -> Tensor:
    """g of the paper: sum over the group forward, identity backward."""
    return tensor if group.size == 1 else _ReduceFrom.apply(tensor, group)


def reduce_scatter_to_sequence_region(tensor: Tensor, group: Group) -> Tensor:
    """[s, ...] -> [s / tp, ...]: this rank's rows of the sum over the group; backward gathers."""
    return tensor if group.size == 1 else _ReduceScatter.apply(tensor, group)


def gather_from_sequence_region(tensor: Tensor, group: Group) -> Tensor:
    """[s / tp, ...] -> [s, ...]: all rows; backward takes this rank's rows of a gradient that all ranks know whole."""
    return tensor if group.size == 1 else _Gather.apply(tensor, group)
