"""Randomness without state: the keys that seed dropout.

A dropout decision is a counter hash of (seed, sample, layer, site, position in the global activation). The sample is
its number in the run, so the step is in it. Recompute, resume and every layout get the same masks, and there is no
generator state to save.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.mpu.context import ParallelContext
from megatron.ops.hash import mix64, mix64_int, signed

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class DropoutKeys:
    """64-bit keys of the rows of a micro-batch's activations.

    hidden: int64 [s * b], rows of [s, b, h]; under sequence parallelism those of this rank's part of the sequence.
    attention: int64 [b * heads * s], rows of [b, heads, s, s] of this rank's heads. whole: int64 [s * b], the hidden
    keys of the whole sequence on every rank. first: int64 [b], those of position 0.
    """

    hidden: Tensor
    attention: Tensor
    whole: Tensor
    first: Tensor


def site_key(layer: int, site: int) -> int:
    """The key of a dropout site, as int64 has it: the layer's number in the whole model and the site in the layer."""
    return signed(mix64_int((layer * 64 + site + 1) * _GOLDEN))


def local_heads(heads: int, context: ParallelContext) -> tuple[int, int]:
    """The first attention head of this rank and how many it has; `heads` is divisible by the group's size."""
    count = heads // context.tensor.size
    return context.tensor.rank * count, count


def local_rows(rows: int, context: ParallelContext) -> slice:
    """The part of a sequence of `rows` positions whose hidden states this rank has outside the linear layers."""
    if not context.sequence_parallel:
        return slice(0, rows)
    count = rows // context.tensor.size
    return slice(context.tensor.rank * count, (context.tensor.rank + 1) * count)


def dropout_keys(seed: int, samples: Tensor, *, sequence: int, heads: int, context: ParallelContext) -> DropoutKeys:
    """Keys for this rank's part of a micro-batch.

    samples: int64 [b], numbers in the run; sequence: padded length; heads: attention heads of the whole model.
    """
    base = mix64(samples * signed(_GOLDEN) + signed(mix64_int(seed)))  # [b]
    positions = torch.arange(1, sequence + 1, dtype=torch.int64, device=samples.device)
    first_head, count = local_heads(heads, context)
    head_numbers = torch.arange(first_head + 1, first_head + count + 1, dtype=torch.int64, device=samples.device)
    rows = (head_numbers << 32)[:, None] + positions  # [heads, s]; hidden rows are those of "head 0"
    hidden = mix64(base + positions[:, None])
    return DropoutKeys(
        hidden=hidden[local_rows(sequence, context)].reshape(-1),
        attention=mix64(base[:, None, None] + rows).reshape(-1),
        whole=hidden.reshape(-1),
        first=hidden[0],
    )
