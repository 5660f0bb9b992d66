from typing import Any

import pytest
import torch

from megatron.native import _C
from megatron.ops import cublas, cuda
from megatron.ops.choices import Choice, choice_lines, choices

SHAPE: dict[str, Any] = {"hidden": 768, "sequence": 512, "attention_dropout": 0.1}


def table(device: str, dtype: torch.dtype, **shape: object) -> dict[str, Choice]:
    return {choice.operation: choice for choice in choices(device, dtype, **{**SHAPE, **shape})}


def test_a_cpu_has_kernels_for_two_formats() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = table("cpu", dtype)
        assert found["cross-entropy"].implementation == "C++" and not found["cross-entropy"].why
        assert found["attention"].implementation == f"C++ for {_C.attention_targets[0]}"
    for name, choice in table("cpu", torch.float16).items():
        assert choice.implementation.startswith(("torch", "product")) and choice.why, name


def test_a_gpu_without_the_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "kernels", lambda: cuda.Kernels(loaded=False, why="not built"))
    found = table("cuda", torch.bfloat16)
    assert found["AdamW"] == Choice(operation="AdamW", implementation="torch", why="not built")
    assert found["attention"].why == "not built"


def test_a_gpu_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "kernels", lambda: cuda.Kernels(loaded=True))
    monkeypatch.setattr(cublas, "is_here", lambda: True)
    found = table("cuda", torch.bfloat16)
    assert found["AdamW"].implementation == "CUDA"
    assert "cuBLAS" in found["gradients of weights"].implementation
    assert found["attention"].implementation.startswith("CUDA: softmax")
    assert "scaled_dot_product" in table("cuda", torch.bfloat16, attention_dropout=0.0)["attention"].implementation
    assert table("cuda", torch.bfloat16, sequence=10_000)["attention"].implementation.startswith("torch")
    wide = table("cuda", torch.bfloat16, hidden=10_000)["bias + dropout + residual, LayerNorm"]
    assert (wide.implementation, wide.why) == ("torch", "rows of more than 8192 numbers")
    assert "cuBLAS" not in table("cuda", torch.float32)["gradients of weights"].implementation


def test_what_apex_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "kernels", lambda: cuda.Kernels(loaded=True))
    found = table("cuda", torch.bfloat16, by_apex=["AdamW", "LayerNorm"])
    assert found["AdamW"].implementation == found["LayerNorm"].implementation == "apex"
    assert found["bias + dropout + residual"].implementation == "CUDA"


def test_lines_stand_below_each_other() -> None:
    table = [Choice(operation="a", implementation="x"), Choice(operation="long", implementation="y", why="z")]
    assert choice_lines(table) == ["  a     x", "  long  y (z)"]
