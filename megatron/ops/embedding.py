"""Sums of rows of tables, and their gradients added to the tables' fp32 memory without a dense gradient between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.native import _C
from megatron.ops.main_grad import gradient_memory
from megatron.ops.operators import DTYPE_CODES, address, define, expect, is_compiled_for_cpu


def _forward(ids: Tensor, tables: Sequence[Tensor]) -> Tensor:
    out = _empty(ids, tables)
    expect(len(tables) * ids.shape[1], torch.int64, ids=ids)
    for table in tables:
        expect(len(table) * out.shape[1], out.dtype, table=table)
    _C.embedding(
        [address(table) for table in tables], [len(table) for table in tables], address(ids), address(out),
        ids.shape[1], out.shape[1], DTYPE_CODES[out.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out


def _empty(ids: Tensor, tables: Sequence[Tensor]) -> Tensor:
    return tables[0].new_empty((ids.shape[1], tables[0].shape[1]))


def _backward(gradient: Tensor, ids: Tensor, into: Sequence[Tensor]) -> None:
    expect(len(into) * ids.shape[1], torch.int64, ids=ids)
    expect(ids.shape[1] * gradient.shape[1], gradient.dtype, gradient=gradient)
    for memory in into:
        expect(len(memory) * gradient.shape[1], torch.float32, into=memory)
    _C.embedding_gradients(
        [address(memory) for memory in into], address(ids), address(gradient), ids.shape[1], gradient.shape[1],
        DTYPE_CODES[gradient.dtype], torch.get_num_threads(),
    )  # fmt: skip


define("embedding(Tensor ids, Tensor[] tables) -> Tensor", _forward, _empty, on_gpu=False)
define(
    "embedding_gradients(Tensor gradient, Tensor ids, Tensor(a!)[] into) -> ()",
    _backward,
    lambda *_: None,
    on_gpu=False,
)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, held: tuple[Tensor, ...], *tables: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.held = held
        return torch.ops.megatron.embedding(ids, tables)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        memory = [gradient_memory(parameter) for parameter in ctx.held]
        torch.ops.megatron.embedding_gradients(gradient.contiguous(), ids, [into for into, _ in memory])
        return None, None, *(given for _, given in memory)


def embedding_sum(ids: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """The sum over tables [rows, width] of the rows that ids name: int64, each of one shape [...]; gives [..., width].

    An id below zero stands for a row of zeros.
    """
    shape = ids[0].shape
    if is_compiled_for_cpu(tables[0]):
        every = torch.stack([one.reshape(-1) for one in ids])
        return _Embedding.apply(every, tuple(tables), *tables).view(*shape, tables[0].shape[1])
    found = [
        F.embedding(one.clamp_min(0), table).masked_fill((one < 0).unsqueeze(-1), 0.0)
        for one, table in zip(ids, tables, strict=True)
    ]
    return torch.stack(found).sum(0) if len(found) > 1 else found[0]
