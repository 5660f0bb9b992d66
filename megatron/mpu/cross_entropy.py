"""Cross-entropy over a vocabulary divided among tensor-parallel ranks (Megatron-LM, arXiv 1909.08053, 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from megatron.mpu.group import Group
from megatron.mpu.sharding import ShardSpec, shard_of
from megatron.ops.cross_entropy import logits_to_gradients, row_statistics
from megatron.ops.main_grad import gradient_memory


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Tensor, labels: Tensor, shard: ShardSpec, group: Group, held: tuple[Tensor]
    ) -> tuple[Tensor, Tensor]:
        start, valid = (shard.start, shard.size) if shard.dim is not None else (0, logits.shape[1])
        largest, total, target = row_statistics(logits, bias, labels, start=start, valid=valid)
        whole = group.all_reduce_(largest.clone(), "max")
        total, target = group.all_reduce_(torch.stack([total * (largest - whole).exp_(), target]))
        ctx.save_for_backward(logits, bias, labels, whole, total)
        ctx.arguments = (start, valid, held)
        correct = target >= whole
        ctx.mark_non_differentiable(correct)
        return total.log() + (whole - target), correct

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, bias, labels, whole, total = ctx.saved_tensors
        start, valid, (parameter,) = ctx.arguments
        into, given = gradient_memory(parameter)
        # In place: nobody else has the logits, and autograd is told, so that it refuses a second backward.
        increment_version(logits)
        factor = gradient.contiguous()
        logits_to_gradients(logits, bias, labels, whole, total, factor, into, start=start, valid=valid)
        return logits, given, None, None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor, bias: nn.Parameter, labels: Tensor, group: Group
) -> tuple[Tensor, Tensor]:
    """Losses and hits of predictions over a divided vocabulary; the full logits exist on no rank.

    logits: [n, V / tp], without their bias; the backward makes its gradient in this memory. bias: [V / tp], divided as
    the vocabulary is. labels: [n] int64. Returns losses [n] fp32 and hits [n] bool: whether no logit is above the
    label's.
    """
    return _VocabParallelCrossEntropy.apply(logits.contiguous(), bias, labels, shard_of(bias), group, (bias,))
