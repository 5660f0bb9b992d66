"""activation(x + bias) in one pass each way."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.native import _C
from megatron.ops.main_grad import gradient_memory
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, workspace

ActivationName = Literal["gelu", "gelu_new", "relu"]
_CODES: dict[str, int] = {"gelu": 0, "gelu_new": 1, "relu": 2}


def _forward(x: Tensor, bias: Tensor, activation: int) -> Tensor:
    y, columns = torch.empty_like(x), x.shape[-1]
    expect(x.numel(), x.dtype, x=x)
    expect(columns, x.dtype, bias=bias)
    _C.bias_activation(
        address(x), address(bias), address(y), x.numel() // columns, columns, activation, DTYPE_CODES[x.dtype],
        place(x),
    )  # fmt: skip
    return y


def _backward(of_y: Tensor, x: Tensor, bias: Tensor, of_bias: Tensor, activation: int) -> Tensor:
    of_x, columns = torch.empty_like(x), x.shape[-1]
    expect(x.numel(), x.dtype, x=x, of_y=of_y)
    expect(columns, x.dtype, bias=bias)
    expect(columns, torch.float32, of_bias=of_bias)
    rows = x.numel() // columns
    sums = workspace(x, rows=rows, columns=columns)
    _C.bias_activation_gradients(
        address(of_y), address(x), address(bias), address(of_x), address(of_bias), address(sums), rows, columns,
        activation, DTYPE_CODES[x.dtype], place(x),
    )  # fmt: skip
    return of_x


define(
    "bias_activation(Tensor x, Tensor bias, int activation) -> Tensor",
    _forward,
    lambda x, bias, activation: torch.empty_like(x),
)
define(
    "bias_activation_gradients(Tensor of_y, Tensor x, Tensor bias, Tensor(a!) of_bias, int activation) -> Tensor",
    _backward,
    lambda of_y, x, bias, of_bias, activation: torch.empty_like(x),
)


class _BiasActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, activation: int, held: tuple[Tensor]) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        # Not among the saved tensors: recomputation would give back a copy that is no parameter.
        ctx.arguments = (activation, held)
        return torch.ops.megatron.bias_activation(x, bias, activation)

    @staticmethod
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        activation, held = ctx.arguments
        into, given = gradient_memory(held[0])
        of_x = torch.ops.megatron.bias_activation_gradients(of_y.contiguous(), x, bias, into, activation)
        return of_x, given, None, None


def bias_activation(x: Tensor, bias: Tensor, activation: ActivationName) -> Tensor:
    """activation(x + bias): x [..., columns], bias [columns]. gelu with erf, gelu_new with tanh (arXiv 1606.08415)."""
    if is_compiled(x):
        return _BiasActivation.apply(x, bias, _CODES[activation], (bias,))
    x = x + bias
    if activation == "relu":
        return torch.relu(x)
    return F.gelu(x, approximate="none" if activation == "gelu" else "tanh")
