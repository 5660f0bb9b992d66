"""Where the operations of a test compute (`tests.ops.places`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron.native import _C
from megatron.ops import cuda, operators
from tests.ops.emulated import build
from tests.ops.places import EMULATED


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA kernels, compiled for a CPU."""
    return build(tmp_path_factory.mktemp("kernels") / "libemulated.so")


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The CPU; the CUDA kernels on tensors of the CPU; or a GPU, on which tensors are then made."""
    if request.param == EMULATED:
        _C.load_cuda_kernels(str(request.getfixturevalue("emulated_kernels")))
        monkeypatch.setattr(operators, "num_threads", lambda: 0)  # what sends an operation to the kernels
    if request.param == "cuda":
        assert cuda.kernels().loaded, cuda.kernels().why
        _C.load_cuda_kernels(str(cuda.LIBRARY))  # after those of a test before
    torch.set_default_device("cuda" if request.param == "cuda" else None)
    yield request.param
    torch.set_default_device(None)
