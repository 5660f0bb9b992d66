"""Conjugate pairs of communication at the borders of tensor-parallel regions (Megatron-LM, arXiv 1909.08053, 3)."""

from __future__ import annotations

from typing import Any

import torch

from megatron.mpu.context import Group


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.all_reduce_(gradient.contiguous().clone()), None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        return group.all_reduce_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def copy_to_tensor_region(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """f of the paper: identity forward, sum of the gradients over the group backward."""
    return tensor if group.size == 1 else _CopyTo.apply(tensor, group)


def reduce_from_tensor_region(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """g of the paper: sum over the group forward, identity backward."""
    return tensor if group.size == 1 else _ReduceFrom.apply(tensor, group)
