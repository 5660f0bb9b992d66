"""Attention probabilities: softmax of scaled scores over the tokens of a sample, with dropout, in one pass each way.

The fusion is Megatron-LM's scaled masked softmax; the mask of dropout is computed again in the backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megatron.native import _C
from megatron.ops.dropout import dropout
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, place, wide


def _forward(
    scores: Tensor, lengths: Tensor | None, scale: float, keys: Tensor | None, site_key: int, probability: float
) -> tuple[Tensor, Tensor]:
    probabilities, dropped = _empty(scores, lengths, scale, keys)
    samples, of_sample, columns = scores.shape
    expect(scores.numel(), scores.dtype, scores=scores)
    expect(samples, torch.int64, lengths=lengths)
    expect(samples * of_sample, torch.int64, keys=keys)
    _C.softmax(
        address(scores), address(lengths), address(probabilities), 0 if keys is None else address(dropped),
        samples * of_sample, columns, of_sample, scale, address(keys), site_key, probability,
        DTYPE_CODES[scores.dtype], place(scores),
    )  # fmt: skip
    return probabilities, dropped


def _empty(
    scores: Tensor, lengths: Tensor | None, scale: float, keys: Tensor | None, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), scores.new_empty(0) if keys is None else torch.empty_like(scores)


def _backward(
    of_dropped: Tensor, probabilities: Tensor, scale: float, keys: Tensor | None, site_key: int, probability: float
) -> Tensor:
    columns = probabilities.shape[-1]
    rows = probabilities.numel() // columns
    expect(probabilities.numel(), probabilities.dtype, of_dropped=of_dropped, probabilities=probabilities)
    expect(rows, torch.int64, keys=keys)
    of_scores = torch.empty_like(probabilities)
    _C.softmax_gradients(
        address(of_dropped), address(probabilities), address(of_scores), rows, columns, scale, address(keys), site_key,
        probability, DTYPE_CODES[probabilities.dtype], place(probabilities),
    )  # fmt: skip
    return of_scores


define(
    "softmax(Tensor scores, Tensor? lengths, float scale, Tensor? keys, SymInt site_key, float probability) "
    "-> (Tensor, Tensor)",
    _forward,
    _empty,
)
define(
    "softmax_gradients(Tensor of_dropped, Tensor probabilities, float scale, Tensor? keys, SymInt site_key, "
    "float probability) -> Tensor",
    _backward,
    lambda of_dropped, probabilities, *_: torch.empty_like(probabilities),
)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, lengths: Tensor | None, scale: float, keys: Tensor | None, site_key: int,
        probability: float,
    ) -> Tensor:  # fmt: skip
        probabilities, dropped = torch.ops.megatron.softmax(
            scores.contiguous(), lengths, scale, keys, site_key, probability
        )
        ctx.save_for_backward(probabilities, keys)
        ctx.arguments = (scale, site_key, probability)
        return probabilities if keys is None else dropped

    @staticmethod
    def backward(ctx: Any, of_dropped: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, keys = ctx.saved_tensors
        scale, site_key, probability = ctx.arguments
        of_scores = torch.ops.megatron.softmax_gradients(
            of_dropped.contiguous(), probabilities, scale, keys, site_key, probability
        )
        return of_scores, None, None, None, None, None


def softmax(
    scores: Tensor, lengths: Tensor | None, *, scale: float, probability: float, keys: Tensor | None, site_key: int
) -> Tensor:
    """dropout(softmax(scale * scores)) over the tokens of each sample.

    scores: [b, rows, s], of which the first `lengths` (int64 [b], at least 1; None: all) of s count; others get 0.
    keys: int64 [b * rows] or None (no dropout). Sums are in fp32.
    """
    if probability == 0.0:
        keys = None
    if is_compiled(scores, columns=scores.shape[-1]):
        return _Softmax.apply(scores, lengths, scale, keys, site_key, probability)
    if lengths is not None:
        padding = torch.arange(scores.shape[-1], device=scores.device) >= lengths[:, None, None]
        scores = scores.masked_fill(padding, -math.inf)
    return dropout(torch.softmax(wide(scores) * scale, -1).to(scores.dtype), probability, keys, site_key)
