"""Bidirectional multi-head attention over padded sequences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ops.dropout import dropout


def padding_bias(lengths: Tensor, sequence: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores: [b, 1, s], 0 for tokens and the most negative number for padding.

    lengths: int64 [b], tokens of each sample. None where no sample has padding.
    """
    positions = torch.arange(sequence, device=lengths.device)
    padding = positions >= lengths[:, None]
    if not bool(padding.any()):
        return None
    return torch.zeros(padding.shape, dtype=dtype, device=lengths.device).masked_fill_(padding, torch.finfo(dtype).min)[
        :, None
    ]


def attention(qkv: Tensor, bias: Tensor | None, *, probability: float, keys: Tensor | None, site_key: int) -> Tensor:
    """Scaled dot-product attention with dropout on the probabilities.

    qkv: [s, b, heads, 3, head_size]. bias: [b, 1, s] of `padding_bias`. keys: int64 [b * heads * s] or None (no
    dropout). Returns [s, b, heads * head_size].
    """
    s, b, heads, _, size = qkv.shape
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
