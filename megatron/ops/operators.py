"""The compiled operations of models as torch operators `torch.ops.megatron.*`, what they take, and where they compute.

As operators with shapes (`fake`) they are seen by torch.compile and by profilers. Their autograd is that of the
modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, library

from megatron.native import _C
from megatron.ops import cuda

LIBRARY = library.Library("megatron", "DEF")
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
num_threads = torch.get_num_threads
MOST_COLUMNS: int = _C.most_columns  # of a row that a GPU keeps in registers


def define(
    signature: str, compute: Callable[..., object], fake: Callable[..., object], *, on_gpu: bool = True
) -> None:
    """Register an operator: `compute` on tensors of a CPU, or where it can of a GPU; `fake` gives empty results.

    Tensors of several devices are refused with a ValueError.
    """
    name = signature[: signature.index("(")]
    LIBRARY.define(signature)
    LIBRARY.impl(name, compute, "CPU")
    if on_gpu:
        LIBRARY.impl(name, _on_its_gpu(name, compute), "CUDA")
    library.register_fake(f"megatron::{name}", fake, lib=LIBRARY)


def _on_its_gpu(name: str, compute: Callable[..., object]) -> Callable[..., object]:
    """What torch calls where one tensor at least is on a GPU: there, which need not be the current one."""

    def guarded(*arguments: object) -> object:
        found = {x.device for x in arguments if isinstance(x, Tensor)}
        if len(found) > 1:
            raise ValueError(f"{name}: tensors on {', '.join(sorted(map(str, found)))}; expected one device")
        with torch.cuda.device(found.pop()):
            return compute(*arguments)

    return guarded


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Kernels that are started inside start on x's GPU; on a CPU nothing."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def why_not_compiled(device: str, dtype: torch.dtype, columns: int = 0) -> str:
    """Why an operation with kernels for both devices ("cpu", "cuda") has none for such rows; empty where it has.

    columns: of a row, where a GPU's kernel keeps it in registers.
    """
    if device not in ("cpu", "cuda"):
        return "kernels are for CPUs and CUDA"
    if dtype not in DTYPE_CODES:
        return "kernels are for fp32 and bf16"
    if device == "cuda" and cuda.why_not_loaded():
        return cuda.why_not_loaded()
    if device == "cuda" and columns > MOST_COLUMNS:
        return f"rows of more than {MOST_COLUMNS} numbers"
    return ""


def is_compiled(x: Tensor, *, columns: int = 0) -> bool:
    """Whether the compiled operation takes a tensor like this (`why_not_compiled`); else the reference is used.

    Not while a model is traced for ONNX, which knows torch's own operators only.
    """
    return not why_not_compiled(x.device.type, x.dtype, columns) and not torch.jit.is_tracing()


def is_compiled_for_cpu(x: Tensor) -> bool:
    """The same for an operation without kernels for a GPU."""
    return x.device.type == "cpu" and is_compiled(x)


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
