"""Bidirectional multi-head attention over padded sequences."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.native import _C
from megatron.ops.dropout import dropout
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled, is_compiled_for_cpu
from megatron.ops.softmax import softmax


def attention(qkv: Tensor, padding: Tensor | None, *, probability: float, keys: Tensor | None, site_key: int) -> Tensor:
    """Scaled dot-product attention with dropout on the probabilities.

    qkv: [s, b, heads, 3, head_size]. padding: None; or int64 [b], the tokens of each sample, which come first; or bool
    [b, s], true for padding, in any order (by torch's own operations). Padding is not attended, and what it gives
    itself is of no use (0 from the compiled kernel). keys: int64 [b * heads * s] or None (no dropout). Returns
    [s, b, heads * head_size].
    """
    if padding is None or padding.dim() == 1:
        if is_compiled_for_cpu(qkv):
            return _Attention.apply(qkv, padding, keys, site_key, probability)
        if is_compiled(qkv, columns=len(qkv)) and keys is not None and probability > 0.0:
            return attention_by_softmax(qkv, padding, probability=probability, keys=keys, site_key=site_key)
    return attention_reference(qkv, padding, probability=probability, keys=keys, site_key=site_key)


def attention_reference(
    qkv: Tensor, padding: Tensor | None, *, probability: float, keys: Tensor | None, site_key: int
) -> Tensor:
    """`attention` of torch's own operations, for any device and dtype."""
    s, b, heads, _, size = qkv.shape
    bias = None if padding is None else padding_bias(padding, s, qkv.dtype)
    if keys is None or probability == 0.0:
        q, k, v = qkv.permute(3, 1, 2, 0, 4).unbind(0)  # [b, heads, s, head_size]
        mask = None if bias is None else bias[:, None]
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return context.permute(2, 0, 1, 3).reshape(s, b, heads * size)
    q, k, v = qkv.reshape(s, b * heads, 3, size).permute(2, 1, 0, 3).unbind(0)  # [b * heads, s, head_size]
    scale = 1.0 / math.sqrt(size)
    if bias is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:
        scores = torch.baddbmm(bias.repeat_interleave(heads, 0), q, k.transpose(1, 2), alpha=scale)
    probabilities = dropout(torch.softmax(scores, -1), probability, keys, site_key)
    return torch.bmm(probabilities, v).transpose(0, 1).reshape(s, b, heads * size)


def attention_by_softmax(
    qkv: Tensor, lengths: Tensor | None, *, probability: float, keys: Tensor | None, site_key: int
) -> Tensor:
    """`attention` of two products and `softmax`: torch's attention kernels have no dropout that layouts agree on."""
    s, b, heads, _, size = qkv.shape
    q, k, v = qkv.reshape(s, b * heads, 3, size).permute(2, 1, 0, 3).unbind(0)  # [b * heads, s, head_size]
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, heads * s, s)
    scale = 1.0 / math.sqrt(size)
    probabilities = softmax(scores, lengths, scale=scale, probability=probability, keys=keys, site_key=site_key)
    return torch.bmm(probabilities.view(b * heads, s, s), v).transpose(0, 1).reshape(s, b, heads * size)


def padding_bias(padding: Tensor, sequence: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: [b, 1, s], 0 for tokens and the most negative number for padding.

    padding: as in `attention`.
    """
    if padding.dim() == 1:
        padding = torch.arange(sequence, device=padding.device) >= padding[:, None]
    return (padding.to(dtype) * torch.finfo(dtype).min)[:, None]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, lengths: Tensor | None, keys: Tensor | None, site_key: int, probability: float
    ) -> Tensor:
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, lengths, keys)
        ctx.arguments = (site_key, probability)
        return torch.ops.megatron.attention(qkv, lengths, keys, site_key, probability)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        site_key, probability = ctx.arguments
        arguments = (*ctx.saved_tensors, site_key, probability)
        return torch.ops.megatron.attention_gradients(gradient, *arguments), None, None, None, None


def attention_forward(
    qkv: Tensor,
    lengths: Tensor | None,
    keys: Tensor | None,
    site_key: int,
    probability: float,
    target: str = _C.attention_targets[0],
) -> Tensor:
    """The compiled kernel on a CPU: `attention` of contiguous fp32 or bf16.

    target: instruction set, one of `_C.attention_targets`.
    """
    s, b, heads, _, size = qkv.shape
    context = torch.empty(s, b, heads * size, dtype=qkv.dtype)
    _C.attention(address(qkv), address(context), *_arguments(qkv, lengths, keys, site_key, probability, target))
    return context


def attention_backward(
    gradient: Tensor,
    qkv: Tensor,
    lengths: Tensor | None,
    keys: Tensor | None,
    site_key: int,
    probability: float,
    target: str = _C.attention_targets[0],
) -> Tensor:
    """The gradient of qkv (contiguous, its shape) from that of the context; scores and masks are computed again."""
    gradient = gradient.contiguous()
    qkv_gradient = torch.empty_like(qkv)
    expect(qkv.numel() // 3, qkv.dtype, gradient=gradient)
    _C.attention_gradients(
        address(qkv), address(gradient), address(qkv_gradient),
        *_arguments(qkv, lengths, keys, site_key, probability, target),
    )  # fmt: skip
    return qkv_gradient


def _arguments(
    qkv: Tensor, lengths: Tensor | None, keys: Tensor | None, site_key: int, probability: float, target: str
) -> tuple[int, int, int, int, int, int, int, float, str, int, int]:
    s, b, heads, _, size = qkv.shape
    expect(qkv.numel(), qkv.dtype, qkv=qkv)
    expect(b, torch.int64, lengths=lengths)
    expect(b * heads * s, torch.int64, keys=keys)
    return (
        s, b, heads, size, address(lengths), address(keys), site_key, probability, target, DTYPE_CODES[qkv.dtype],
        torch.get_num_threads(),
    )  # fmt: skip


define(
    "attention(Tensor qkv, Tensor? lengths, Tensor? keys, SymInt site_key, float probability) -> Tensor",
    attention_forward,
    lambda qkv, *_: qkv.new_empty((*qkv.shape[:2], qkv.shape[2] * qkv.shape[4])),
    on_gpu=False,
)
define(
    "attention_gradients(Tensor gradient, Tensor qkv, Tensor? lengths, Tensor? keys, SymInt site_key, "
    "float probability) -> Tensor",
    attention_backward,
    lambda gradient, qkv, *_: torch.empty_like(qkv),
    on_gpu=False,
)
