"""The library of CUDA kernels (csrc/kernels/*.cu), which `make kernels` builds where nvcc is."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.native import _C

LIBRARY = Path(__file__).parents[1] / "libmegatron_cuda.so"
OLDEST_CAPABILITY = (8, 0)  # of a GPU: what the kernels are compiled for


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Whether the library is loaded, and if not, why."""

    loaded: bool
    why: str = ""


@torch.compiler.assume_constant_result
def why_not_loaded() -> str:
    """Empty where the kernels are loaded. torch.compile takes it as it is and looks at no files."""
    return kernels().why


@functools.cache
def kernels() -> Kernels:
    """Load the library, where there is a GPU for it."""
    if not torch.cuda.is_available():
        return Kernels(loaded=False, why="no GPU")
    if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return Kernels(loaded=False, why="the GPU is older than compute capability 8.0")
    if not LIBRARY.exists():
        return Kernels(loaded=False, why="the kernels are not built: `make kernels`, which needs nvcc")
    try:
        _C.load_cuda_kernels(str(LIBRARY))
    except RuntimeError as error:
        return Kernels(loaded=False, why=str(error))
    return Kernels(loaded=True)
