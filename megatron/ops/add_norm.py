"""Residual + dropout(block + bias), LayerNorm, and both in one pass; statistics and sums in fp32.

The fusion is that of Megatron-LM's bias-dropout-add and of DeepSpeed's transformer kernels. What is stored is the sum
and two numbers a row; dropout's mask is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.native import _C
from megatron.ops import apex
from megatron.ops.dropout import dropout
from megatron.ops.main_grad import gradient_memory
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, workspace


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A LayerNorm's parameters, [columns] each. by_apex: whether apex's kernel computes it."""

    weight: Tensor
    shift: Tensor
    epsilon: float
    by_apex: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Dropout of a block's output: keys, int64, one a row (None: no dropout), and the site's key."""

    probability: float
    keys: Tensor | None
    site_key: int


NO_DROPOUT = Kept(probability=0.0, keys=None, site_key=0)


def _forward(
    block: Tensor | None, bias: Tensor | None, residual: Tensor, weight: Tensor | None, shift: Tensor | None,
    epsilon: float, keys: Tensor | None, site_key: int, probability: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total, normalized, mean, rstd = _empty(block, bias, residual, weight)
    columns = residual.shape[-1]
    rows = residual.numel() // columns
    expect(residual.numel(), residual.dtype, residual=residual, block=block)
    expect(columns, residual.dtype, bias=bias, weight=weight, shift=shift)
    expect(rows, torch.int64, keys=keys)
    _C.add_norm(
        address(block), address(bias), address(residual), address(weight), address(shift), address(total),
        address(normalized), address(mean), address(rstd), rows, columns, epsilon,
        address(keys), site_key, probability, DTYPE_CODES[residual.dtype], place(residual),
    )  # fmt: skip
    return total, normalized, mean, rstd


def _empty(
    block: Tensor | None, bias: Tensor | None, residual: Tensor, weight: Tensor | None, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results of `_forward`; those that do not occur have no elements."""
    rows = residual.numel() // residual.shape[-1]
    nothing = residual.new_empty(0)
    total = nothing if block is None else torch.empty_like(residual)
    if weight is None:
        return total, residual.new_empty(0), residual.new_empty(0), residual.new_empty(0)
    mean, rstd = (residual.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return total, torch.empty_like(residual), mean, rstd


def _backward(
    of_total: Tensor | None, of_normalized: Tensor | None, total: Tensor | None, weight: Tensor | None,
    mean: Tensor | None, rstd: Tensor | None, has_block: bool, of_bias: Tensor | None, of_weight: Tensor | None,
    of_shift: Tensor | None, keys: Tensor | None, site_key: int, probability: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_residual, of_block = _empty_gradients(of_total, of_normalized, total, weight, mean, rstd, has_block)
    given = of_total if of_normalized is None else of_normalized
    assert given is not None
    columns = given.shape[-1]
    rows = given.numel() // columns
    expect(given.numel(), given.dtype, of_total=of_total, of_normalized=of_normalized, total=total)
    expect(columns, given.dtype, weight=weight)
    expect(columns, torch.float32, of_bias=of_bias, of_weight=of_weight, of_shift=of_shift)
    expect(rows, torch.float32, mean=mean, rstd=rstd)
    expect(rows, torch.int64, keys=keys)
    sums = workspace(given, rows=rows, columns=columns, sums=3)
    _C.add_norm_gradients(
        address(of_total), address(of_normalized), address(total), address(weight), address(mean), address(rstd),
        address(of_residual) if weight is not None else 0, address(of_block) if has_block else 0, address(of_bias),
        address(of_weight), address(of_shift), address(sums), rows, columns, address(keys), site_key,
        probability, DTYPE_CODES[given.dtype], place(given),
    )  # fmt: skip
    return of_residual, of_block


def _empty_gradients(
    of_total: Tensor | None, of_normalized: Tensor | None, total: Tensor | None, weight: Tensor | None,
    mean: Tensor | None, rstd: Tensor | None, has_block: bool, *_: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    given = of_total if of_normalized is None else of_normalized
    assert given is not None
    of_residual = given.new_empty(0) if weight is None else torch.empty_like(given)
    return of_residual, torch.empty_like(given) if has_block else given.new_empty(0)


define(
    "add_norm(Tensor? block, Tensor? bias, Tensor residual, Tensor? weight, Tensor? shift, float epsilon, "
    "Tensor? keys, SymInt site_key, float probability) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _empty,
)
define(
    "add_norm_gradients(Tensor? of_total, Tensor? of_normalized, Tensor? total, Tensor? weight, Tensor? mean, "
    "Tensor? rstd, bool has_block, Tensor(a!)? of_bias, Tensor(b!)? of_weight, Tensor(c!)? of_shift, Tensor? keys, "
    "SymInt site_key, float probability) -> (Tensor, Tensor)",
    _backward,
    _empty_gradients,
)


class _AddNorm(torch.autograd.Function):
    """Gives (sum, normalized): without a block the sum is empty, without a LayerNorm the normalized."""

    @staticmethod
    def forward(
        ctx: Any, block: Tensor | None, bias: Tensor | None, residual: Tensor, weight: Tensor | None,
        shift: Tensor | None, epsilon: float, kept: Kept, held: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        block, residual = None if block is None else block.contiguous(), residual.contiguous()
        total, normalized, mean, rstd = torch.ops.megatron.add_norm(
            block, bias, residual, weight, shift, epsilon, kept.keys, kept.site_key, kept.probability
        )
        if weight is not None:
            ctx.save_for_backward(residual if block is None else total, weight, mean, rstd, kept.keys)
        else:
            ctx.save_for_backward(None, None, None, None, kept.keys)
        # Not among the saved tensors: recomputation would give back copies that are no parameters.
        ctx.arguments = (block is not None, kept, held)
        ctx.set_materialize_grads(False)
        return total, normalized

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_normalized: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, mean, rstd, keys = ctx.saved_tensors
        has_block, kept, held = ctx.arguments
        of_total = None if of_total is None or not has_block else of_total.contiguous()
        if weight is not None and of_normalized is None:  # nothing but the sum was used
            assert of_total is not None
            of_normalized = torch.zeros_like(of_total)
        of_normalized = None if weight is None or of_normalized is None else of_normalized.contiguous()
        memory = [(None, None) if parameter is None else gradient_memory(parameter) for parameter in held]
        of_residual, of_block = torch.ops.megatron.add_norm_gradients(
            of_total, of_normalized, total, weight, mean, rstd, has_block, *(into for into, _ in memory),
            keys, kept.site_key, kept.probability,
        )  # fmt: skip
        of_bias, of_weight, of_shift = (given for _, given in memory)
        return (
            of_block if has_block else None, of_bias, of_total if weight is None else of_residual, of_weight, of_shift,
            None, None, None,
        )  # fmt: skip


def layernorm(x: Tensor, norm: Norm) -> Tensor:
    """Layer normalisation over the last dimension (arXiv 1607.06450): [..., columns] -> [..., columns]."""
    if norm.by_apex:
        return apex.layernorm(x, norm.weight, norm.shift, norm.epsilon)
    if not is_compiled(x, columns=x.shape[-1]):
        return F.layer_norm(x, norm.weight.shape, norm.weight, norm.shift, norm.epsilon)
    held = (None, norm.weight, norm.shift)
    return _AddNorm.apply(None, None, x, norm.weight, norm.shift, norm.epsilon, NO_DROPOUT, held)[1]


def add(block: Tensor, bias: Tensor, residual: Tensor, kept: Kept) -> Tensor:
    """residual + dropout(block + bias): [..., columns] each, bias [columns]."""
    if not is_compiled(block, columns=block.shape[-1]):
        return residual + dropout(block + bias, kept.probability, kept.keys, kept.site_key)
    return _AddNorm.apply(block, bias, residual, None, None, 0.0, _active(kept), (bias, None, None))[0]


def add_norm(block: Tensor, bias: Tensor, residual: Tensor, kept: Kept, norm: Norm) -> tuple[Tensor, Tensor]:
    """The sum residual + dropout(block + bias), and its LayerNorm: [..., columns] each, bias [columns]."""
    if norm.by_apex or not is_compiled(block, columns=block.shape[-1]):
        total = add(block, bias, residual, kept)
        return total, layernorm(total, norm)
    held = (bias, norm.weight, norm.shift)
    return _AddNorm.apply(block, bias, residual, norm.weight, norm.shift, norm.epsilon, _active(kept), held)


def _active(kept: Kept) -> Kept:
    return NO_DROPOUT if kept.keys is None or kept.probability == 0.0 else kept
