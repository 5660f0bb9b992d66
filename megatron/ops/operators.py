"""The compiled operations as torch operators `torch.ops.megatron.*`, and which tensors they take.

As operators with shapes (`fake`) they are seen by torch.compile and by profilers. Their autograd is that of the
modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("megatron", "DEF")
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


def define(signature: str, compute: Callable[..., object], fake: Callable[..., object]) -> None:
    """Register an operator: `compute` on CPU tensors, `fake` gives empty results of the same shapes."""
    name = signature[: signature.index("(")]
    LIBRARY.define(signature)
    LIBRARY.impl(name, compute, "CPU")
    torch.library.register_fake(f"megatron::{name}", fake, lib=LIBRARY)


def is_compiled(x: Tensor) -> bool:
    """Whether the compiled operations take a tensor like this; else the reference in torch is used.

    Not while a model is traced for ONNX, which knows torch's own operators only.
    """
    return x.device.type == "cpu" and x.dtype in DTYPE_CODES and not torch.jit.is_tracing()


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
