"""Which implementation each operation has in a run, and why: the table that a run prints when it starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from megatron.native import _C
from megatron.ops import cublas
from megatron.ops.operators import why_not_compiled


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An operation's implementation. why: not the fastest one, if so."""

    operation: str
    implementation: str
    why: str = ""


_KERNELS = {"cpu": "C++", "cuda": "CUDA"}
_APEX_LAYERNORM = Choice(operation="LayerNorm", implementation="apex", why="as asked")
_APEX_ADAMW = Choice(operation="AdamW", implementation="apex", why="as asked")


def choices(
    device: str,
    dtype: torch.dtype,
    *,
    hidden: int,
    sequence: int,
    attention_dropout: float,
    by_apex: Collection[str] = (),
) -> list[Choice]:
    """The table for a model of width `hidden` on sequences of `sequence` tokens.

    device: "cpu" or "cuda"; by_apex: which of "AdamW" and "LayerNorm" apex was asked to compute.
    """
    norm = "LayerNorm" in by_apex
    return [
        _choice("bias + dropout + residual" + ("" if norm else ", LayerNorm"), device, dtype, columns=hidden),
        *([_APEX_LAYERNORM] if norm else []),
        _choice("bias + activation", device, dtype),
        _choice("cross-entropy", device, dtype),
        _attention(device, dtype, sequence, attention_dropout),
        _embeddings(device, dtype),
        _weight_gradients(device, dtype),
        _APEX_ADAMW if "AdamW" in by_apex else _choice("AdamW", device, dtype),
    ]


def _choice(operation: str, device: str, dtype: torch.dtype, columns: int = 0) -> Choice:
    why = why_not_compiled(device, dtype, columns)
    return Choice(operation=operation, implementation="torch" if why else _KERNELS[device], why=why)


def _attention(device: str, dtype: torch.dtype, sequence: int, dropout: float) -> Choice:
    operation, why = "attention", why_not_compiled(device, dtype, sequence)
    if device == "cpu" and not why:
        return Choice(operation=operation, implementation=f"C++ for {_C.attention_targets[0]}")
    if dropout == 0.0:
        return Choice(operation=operation, implementation="torch's scaled_dot_product_attention")
    masks = "its dropout would depend on the layout"
    if not why:
        return Choice(operation=operation, implementation="CUDA: softmax and dropout between products", why=masks)
    return Choice(operation=operation, implementation="torch: products, softmax, dropout", why=why)


def _embeddings(device: str, dtype: torch.dtype) -> Choice:
    if device == "cpu":
        return _choice("embeddings", device, dtype)
    return Choice(operation="embeddings", implementation="torch", why="there is no kernel for a GPU")


def _weight_gradients(device: str, dtype: torch.dtype) -> Choice:
    operation = "gradients of weights"
    if dtype == torch.float32:
        return Choice(operation=operation, implementation="added by the product")
    if device == "cuda" and cublas.is_here():
        return Choice(operation=operation, implementation="added by the product (cuBLAS), in fp32")
    why = "torch's products add in one format"
    return Choice(operation=operation, implementation="product, then added in fp32", why=why)


def choice_lines(table: list[Choice]) -> list[str]:
    """The table as text."""
    width = max(len(choice.operation) for choice in table)
    return [
        f"  {choice.operation:<{width}}  {choice.implementation}" + (f" ({choice.why})" if choice.why else "")
        for choice in table
    ]
