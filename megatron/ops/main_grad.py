"""Where the gradient of a parameter is added up: in fp32 memory of its own (Megatron-LM's `main_grad`), or by autograd.

The owner of the gradients gives a parameter two attributes: `main_grad`, fp32 of its shape, and `arrived`, to be called
when its gradient of a backward is complete, where autograd cannot see that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.native import _C
from megatron.ops import cublas
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, workspace


def main_grad_of(parameter: Tensor) -> Tensor | None:
    """The parameter's memory for its gradient, if its owner gave it one."""
    return getattr(parameter, "main_grad", None)


def gradient_memory(parameter: Tensor) -> tuple[Tensor, Tensor | None]:
    """fp32 memory to add a gradient to, of the parameter's shape; and what autograd is to be given for it."""
    main_grad = main_grad_of(parameter)
    if main_grad is not None:
        return main_grad, None
    fresh = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
    return fresh, fresh


def add_product(parameter: Tensor, rows: Tensor, columns: Tensor) -> Tensor | None:
    """Add the gradient rows^T columns of a weight [outputs, inputs]; what autograd is to be given for it.

    rows: [n, outputs]; columns: [n, inputs]. In fp32, and on a GPU, the product itself adds to what is there.
    """
    main_grad = main_grad_of(parameter)
    if main_grad is None:
        return rows.t() @ columns
    if rows.dtype == main_grad.dtype:
        main_grad.addmm_(rows.t(), columns)
    elif rows.is_cuda and cublas.is_here():
        torch.ops.megatron.add_product_(main_grad, rows.contiguous(), columns.contiguous())
    else:
        _add_rows(main_grad, (rows.t() @ columns).view(1, -1))
    return None


def add_sum(parameter: Tensor, rows: Tensor) -> Tensor | None:
    """Add the gradient of a bias [outputs], the sum of rows [n, outputs], in fp32; what autograd is to be given."""
    into, given = gradient_memory(parameter)
    _add_rows(into, rows)
    return given


def _add_rows(into: Tensor, rows: Tensor) -> None:
    """into, fp32 of n elements, += the sum of rows [..., n] over the first dimension."""
    if is_compiled(rows):
        torch.ops.megatron.add_rows_(into, rows.contiguous())
    else:
        into.add_(rows.sum(0, dtype=torch.float32).view(into.shape))


def _compute(into: Tensor, rows: Tensor) -> None:
    count, columns = rows.shape
    expect(count * columns, rows.dtype, rows=rows)
    expect(columns, torch.float32, into=into)
    sums = workspace(rows, rows=count, columns=columns) if count > 1 else None
    _C.add_rows(
        address(into), address(rows), address(sums), count, columns, DTYPE_CODES[rows.dtype], place(rows)
    )


define("add_product_(Tensor(a!) into, Tensor rows, Tensor columns) -> ()", cublas.add_product_, lambda *_: None)
define("add_rows_(Tensor(a!) into, Tensor rows) -> ()", _compute, lambda *_: None)


def put_gradient(parameter: torch.nn.Parameter, gradient: Tensor | None) -> None:
    """End the gradient of a parameter outside of autograd: `gradient` is what its functions above returned."""
    if gradient is None:
        parameter.arrived()  # type: ignore[attr-defined]
    elif parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad.add_(gradient)
