"""The two halves of cross-entropy over one rank's columns of the vocabulary; what is between them travels.

The gradient takes the place of the logits: of their size the compiled operation has nothing else, neither probabilities
nor fp32 logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.native import _C
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, wide, workspace


def _statistics(
    logits: Tensor, bias: Tensor, labels: Tensor, start: int, valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = logits.shape
    expect(rows * columns, logits.dtype, logits=logits)
    expect(columns, logits.dtype, bias=bias)
    expect(rows, torch.int64, labels=labels)
    largest, total, target = _empty(logits)
    _C.cross_entropy(
        address(logits), address(bias), address(labels), address(largest), address(total), address(target), rows,
        columns, valid, start, DTYPE_CODES[logits.dtype], place(logits),
    )  # fmt: skip
    return largest, total, target


def _empty(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return tuple(logits.new_empty(rows, dtype=torch.float32) for _ in range(3))  # type: ignore[return-value]


def _gradients(
    logits: Tensor, bias: Tensor, labels: Tensor, largest: Tensor, total: Tensor, factor: Tensor, of_bias: Tensor,
    start: int, valid: int,
) -> None:  # fmt: skip
    rows, columns = logits.shape
    expect(rows * columns, logits.dtype, logits=logits)
    expect(columns, logits.dtype, bias=bias)
    expect(rows, torch.int64, labels=labels)
    expect(rows, torch.float32, largest=largest, total=total, factor=factor)
    expect(columns, torch.float32, of_bias=of_bias)
    sums = workspace(logits, rows=rows, columns=columns)
    _C.cross_entropy_gradients(
        address(logits), address(bias), address(labels), address(largest), address(total), address(factor),
        address(of_bias), address(sums), rows, columns, valid, start, DTYPE_CODES[logits.dtype], place(logits),
    )  # fmt: skip


define(
    "cross_entropy(Tensor logits, Tensor bias, Tensor labels, SymInt start, SymInt valid) -> (Tensor, Tensor, Tensor)",
    _statistics,
    _empty,
)
define(
    "cross_entropy_gradients_(Tensor(a!) logits, Tensor bias, Tensor labels, Tensor largest, Tensor total, "
    "Tensor factor, Tensor(b!) of_bias, SymInt start, SymInt valid) -> ()",
    _gradients,
    lambda *_: None,
)


def row_statistics(
    logits: Tensor, bias: Tensor, labels: Tensor, *, start: int, valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of logits + bias: the largest, the sum of exponentials relative to it, the label's logit.

    logits: [n, columns], of which the first `valid` belong to the vocabulary, from its row `start` on; bias: [columns];
    labels: int64 [n], places in the whole vocabulary. fp32 [n] each; the label's logit is 0 where it is not here.
    """
    if is_compiled(logits):
        return torch.ops.megatron.cross_entropy(logits, bias, labels, start, valid)
    biased = wide(logits[:, :valid]) + wide(bias[:valid])
    largest = biased.amax(1)
    total = (biased - largest.unsqueeze(1)).exp_().sum(1)
    column, outside = _places(labels, start, valid)
    return largest, total, biased.gather(1, column.unsqueeze(1)).squeeze(1).masked_fill(outside, 0.0)


def logits_to_gradients(
    logits: Tensor, bias: Tensor, labels: Tensor, largest: Tensor, total: Tensor, factor: Tensor, of_bias: Tensor, *,
    start: int, valid: int,
) -> None:  # fmt: skip
    """Make gradients of logits, in place: (softmax - label) * factor; 0 in columns from `valid` on.

    largest, total, factor: fp32 [n], both statistics of the whole rows, and gradients of the losses.
    of_bias: fp32 [columns], to which the gradient of the bias is added.
    """
    if is_compiled(logits):
        torch.ops.megatron.cross_entropy_gradients_(
            logits, bias, labels, largest, total, factor, of_bias, start, valid
        )
        return
    biased = wide(logits[:, :valid]) + wide(bias[:valid])
    gradients = (biased - largest.unsqueeze(1)).exp_().mul_((factor / total).unsqueeze(1))
    column, outside = _places(labels, start, valid)
    gradients.scatter_add_(1, column.unsqueeze(1), (-factor.unsqueeze(1)).masked_fill(outside.unsqueeze(1), 0.0))
    of_bias[:valid] += gradients.sum(0)
    logits[:, :valid] = gradients
    logits[:, valid:] = 0.0


def _places(labels: Tensor, start: int, valid: int) -> tuple[Tensor, Tensor]:
    column = labels - start
    outside = (column < 0) | (column >= valid)
    return column.masked_fill(outside, 0), outside
