"""The compiled helpers `megatron._C` (from csrc/), or a clear word on how to get them; and the CUDA kernels beside them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import UserError

try:
    from megatron import _C
except ImportError as error:
    raise UserError(f"the compiled helpers megatron._C cannot be imported ({error}): run `make install`") from error

__all__ = ["CUDA_LIBRARY", "CudaKernels", "_C", "cuda_kernels"]

CUDA_LIBRARY = Path(__file__).with_name("libmegatron_cuda.so")
OLDEST_CAPABILITY = (8, 0)  # of a GPU: what the kernels are compiled for


@dataclass(frozen=True, kw_only=True)
class CudaKernels:
    """Whether the library of CUDA kernels is loaded, and if not, why."""

    loaded: bool
    why: str


@functools.cache
def cuda_kernels() -> CudaKernels:
    """Load the library of CUDA kernels, where there is a GPU for it."""
    import torch

    if not torch.cuda.is_available():
        return CudaKernels(loaded=False, why="no GPU")
    if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return CudaKernels(loaded=False, why="the GPU is older than compute capability 8.0")
    if not CUDA_LIBRARY.exists():
        return CudaKernels(loaded=False, why="the kernels are not built: `make kernels`, which needs nvcc")
    try:
        _C.load_cuda_kernels(str(CUDA_LIBRARY))
    except RuntimeError as error:
        return CudaKernels(loaded=False, why=str(error))
    return CudaKernels(loaded=True, why="")
