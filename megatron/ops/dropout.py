"""Dropout whose mask is a counter hash of keys: nothing is stored, the backward computes the mask again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron.native import _C
from megatron.ops.hash import mix64, row_hash
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, wide


def _compute(x: Tensor, probability: float, keys: Tensor, site_key: int) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    rows = keys.numel()
    expect(x.numel() // rows * rows, x.dtype, x=x)
    expect(rows, torch.int64, keys=keys)
    _C.dropout(
        address(x), address(y), rows, x.numel() // rows, address(keys), site_key, probability,
        DTYPE_CODES[x.dtype], place(x),
    )  # fmt: skip
    return y


define(
    "dropout(Tensor x, float probability, Tensor keys, SymInt site_key) -> Tensor",
    _compute,
    lambda x, probability, keys, site_key: torch.empty_like(x, memory_format=torch.contiguous_format),
)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, keys: Tensor, site_key: int) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.arguments = (probability, site_key)
        return _apply(x, probability, keys, site_key)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (keys,) = ctx.saved_tensors
        probability, site_key = ctx.arguments
        return _apply(gradient, probability, keys, site_key), None, None, None


def dropout(x: Tensor, probability: float, keys: Tensor | None, site_key: int) -> Tensor:
    """Zero each element with `probability` and scale the others by 1 / (1 - probability).

    keys: int64, one for each row of x seen as [keys.numel(), columns]; None (evaluation) returns x.
    """
    if keys is None or probability == 0.0:
        return x
    return _Dropout.apply(x, probability, keys, site_key)


def _apply(x: Tensor, probability: float, keys: Tensor, site_key: int) -> Tensor:
    if is_compiled(x):
        return torch.ops.megatron.dropout(x, probability, keys, site_key)
    keep = dropout_mask(keys, site_key, x.numel() // keys.numel(), probability).view(x.shape)
    return torch.where(keep, wide(x) / (1.0 - probability), 0.0).to(x.dtype)


def dropout_mask(keys: Tensor, site_key: int, columns: int, probability: float) -> Tensor:
    """Reference: the elements that are kept, bool [keys.numel(), columns]."""
    column = torch.arange(columns, dtype=torch.int64, device=keys.device)
    return row_hash(mix64(keys ^ site_key), column) >= min(int(probability * 2.0**32), 2**32 - 1)
