"""Cross-entropy over a vocabulary divided among tensor-parallel ranks (Megatron-LM, arXiv 1909.08053, 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron.mpu.group import Group


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, start: int, group: Group) -> tuple[Tensor, Tensor]:
        dtype, logits = logits.dtype, logits.float()
        maximum = group.all_reduce_(logits.amax(1), "max")
        shifted = logits - maximum.unsqueeze(1)
        columns = labels - start
        outside = (columns < 0) | (columns >= logits.shape[1])
        columns = columns.masked_fill(outside, 0).unsqueeze(1)
        target = shifted.gather(1, columns).squeeze(1).masked_fill_(outside, 0.0)
        group.all_reduce_(target)
        exponentials = shifted.exp_()
        total = group.all_reduce_(exponentials.sum(1))
        losses = total.log() - target
        ctx.save_for_backward(exponentials.div_(total.unsqueeze(1)), columns, outside)
        ctx.dtype = dtype
        correct = target >= 0
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, columns, outside = ctx.saved_tensors
        weight = gradient.unsqueeze(1)
        result = probabilities * weight
        result.scatter_add_(1, columns, (-weight).masked_fill(outside.unsqueeze(1), 0.0))
        return result.to(ctx.dtype), None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, start: int, group: Group) -> tuple[Tensor, Tensor]:
    """Losses and hits of predictions over a divided vocabulary; the full logits exist on no rank.

    logits: [n, V / tp], this rank's columns, the first of which is column `start` of the vocabulary. labels: [n]
    int64. Returns losses [n] fp32 and hits [n] bool: whether no logit is above the label's.
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, start, group)
