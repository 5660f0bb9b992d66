"""Which implementation each operation has in a run, and why: the table that a run prints when it starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from megatron.native import _C
from megatron.ops import cublas, cuda
from megatron.ops.operators import DTYPE_CODES, MOST_COLUMNS


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An operation's implementation. why: not the fastest one, if so."""

    operation: str
    implementation: str
    why: str = ""


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
    kernels, why = _kernels(device, dtype)
    rows, why_rows = (kernels, why)
    if device == "cuda" and not why and hidden > MOST_COLUMNS:
        rows, why_rows = "torch", f"rows of more than {MOST_COLUMNS} numbers"
    asked = {"implementation": "apex", "why": "as asked"}
    ours = {"implementation": kernels, "why": why}
    if "LayerNorm" in by_apex:
        norms = [
            Choice(operation="bias + dropout + residual", implementation=rows, why=why_rows),
            Choice(operation="LayerNorm", **asked),
        ]
    else:
        norms = [Choice(operation="bias + dropout + residual, LayerNorm", implementation=rows, why=why_rows)]
    return [
        *norms,
        Choice(operation="bias + activation", **ours),
        Choice(operation="cross-entropy", **ours),
        _attention(device, kernels, why, sequence, attention_dropout),
        _embeddings(device, kernels, why),
        _weight_gradients(device, dtype),
        Choice(operation="AdamW", **(asked if "AdamW" in by_apex else ours)),
    ]


def _kernels(device: str, dtype: torch.dtype) -> tuple[str, str]:
    if dtype not in DTYPE_CODES:
        return "torch", "kernels are for fp32 and bf16"
    if device == "cpu":
        return "C++", ""
    kernels = cuda.kernels()
    return ("CUDA", "") if kernels.loaded else ("torch", kernels.why)


def _attention(device: str, kernels: str, why: str, sequence: int, dropout: float) -> Choice:
    operation = "attention"
    if kernels == "C++":
        return Choice(operation=operation, implementation=f"C++ for {_C.attention_targets[0]}")
    if dropout == 0.0:
        return Choice(operation=operation, implementation="torch's scaled_dot_product_attention")
    masks = "its dropout would depend on the layout"
    if kernels == "CUDA" and sequence <= MOST_COLUMNS:
        return Choice(operation=operation, implementation="CUDA: softmax and dropout between products", why=masks)
    return Choice(operation=operation, implementation="torch: products, softmax, dropout", why=why or masks)


def _embeddings(device: str, kernels: str, why: str) -> Choice:
    operation = "embeddings"
    if kernels == "C++":
        return Choice(operation=operation, implementation=kernels)
    return Choice(operation=operation, implementation="torch", why="" if device == "cuda" else why)


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
