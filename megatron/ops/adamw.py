"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over flat memory, and the norm before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.native import _C
from megatron.ops.operators import address, is_compiled, on_device_of, place


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one update is made with. factor: multiplies gradients first (clipping, loss scale); step: counts from 1."""

    factor: float
    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    step: int


def adamw_(
    weights: Tensor, gradients: Tensor, first: Tensor, second: Tensor, copy: Tensor | None, update: Update
) -> None:
    """Update weights and moments, fp32 [n] each, in place; copy: the weights in 16 bits [n], written with them."""
    if is_compiled(weights) and (copy is None or copy.dtype == torch.bfloat16):
        with on_device_of(weights):
            _C.adamw(
                weights.data_ptr(), gradients.data_ptr(), first.data_ptr(), second.data_ptr(),
                0 if copy is None else copy.data_ptr(), weights.numel(), update.factor, update.learning_rate,
                update.weight_decay, update.beta1, update.beta2, update.epsilon, update.step, place(weights),
            )  # fmt: skip
        return
    torch._fused_adamw_(
        [weights], [gradients if update.factor == 1.0 else gradients * update.factor], [first], [second], [],
        [torch.tensor(float(update.step), device=weights.device)], lr=update.learning_rate, beta1=update.beta1,
        beta2=update.beta2, weight_decay=update.weight_decay, eps=update.epsilon, amsgrad=False, maximize=False,
    )  # fmt: skip
    if copy is not None:
        copy.copy_(weights)


def sum_of_squares(x: Tensor) -> Tensor:
    """The sum of squares of fp32 [n], an fp64 scalar."""
    if not is_compiled(x):
        return torch.linalg.vector_norm(x, dtype=torch.float64) ** 2
    total, where = x.new_empty((), dtype=torch.float64), place(x)
    parts = x.new_empty(_C.most_parts, dtype=torch.float64) if where[0] == 0 else None
    with on_device_of(x):
        _C.sum_of_squares(address(x), address(total), address(parts), x.numel(), where)
    return total
