"""The compiled operations as torch operators `torch.ops.megatron.*`, which tensors they take, and where they compute.

As operators with shapes (`fake`) they are seen by torch.compile and by profilers. Their autograd is that of the
modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, register_fake

from megatron.native import _C
from megatron.ops import cuda

LIBRARY = Library("megatron", "DEF")
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
num_threads = torch.get_num_threads
MOST_COLUMNS: int = _C.most_columns  # of a row that a GPU keeps in registers


def define(signature: str, compute: Callable[..., object], fake: Callable[..., object]) -> None:
    """Register an operator: `compute` on tensors of a CPU or a GPU, `fake` gives empty results of the same shapes."""
    name = signature[: signature.index("(")]
    LIBRARY.define(signature)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, compute, device)
    register_fake(f"megatron::{name}", fake, lib=LIBRARY)


def is_compiled_for_cpu(x: Tensor) -> bool:
    """Whether the compiled operations of a CPU take a tensor like this; else the reference in torch is used.

    Not while a model is traced for ONNX, which knows torch's own operators only.
    """
    return x.device.type == "cpu" and x.dtype in DTYPE_CODES and not torch.jit.is_tracing()


def is_compiled(x: Tensor, *, columns: int = 0) -> bool:
    """The same for an operation that has kernels for a GPU, too.

    columns: of a row, where a kernel keeps it in registers (`MOST_COLUMNS`).
    """
    if x.device.type != "cuda":
        return is_compiled_for_cpu(x)
    return x.dtype in DTYPE_CODES and columns <= MOST_COLUMNS and cuda.kernels().loaded and not torch.jit.is_tracing()


def place(x: Tensor) -> tuple[int, int]:
    """Where a kernel computes on x: threads of the CPU, or 0 of them and the current stream of x's GPU."""
    return (0, torch.cuda.current_stream(x.device).cuda_stream) if x.is_cuda else (num_threads(), 0)


def workspace(x: Tensor, *, rows: int, columns: int, sums: int = 1) -> Tensor | None:
    """Memory for sums over rows of `columns` numbers, which are taken in parts on a GPU; None on a CPU.

    To be kept until the kernel is on its stream.
    """
    if place(x)[0] > 0:
        return None
    return x.new_empty(_C.parts_of(rows, columns) * sums * columns, dtype=torch.float32)


def wide(x: Tensor) -> Tensor:
    """x in the format of sums in references: fp32, or fp64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def expect(size: int, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """What a kernel takes for granted: contiguous tensors of `size` numbers of `dtype`. Raises ValueError otherwise."""
    for name, tensor in tensors.items():
        if tensor is None or (tensor.numel() == size and tensor.dtype == dtype and tensor.is_contiguous()):
            continue
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(f"{name}: {tensor.numel()} x {tensor.dtype}{layout}; expected {size} x {dtype}")


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
