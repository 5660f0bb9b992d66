"""Products of 16-bit matrices that are added to fp32 memory as they are computed (Megatron-LM's fused gradient
accumulation). torch has no function for it, so the cuBLAS that it brings is called itself.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ops.operators import expect

# Of cublas_api.h and library_types.h.
NOT_TRANSPOSED, TRANSPOSED, DEFAULT_ALGORITHM, COMPUTE_FLOAT = 0, 1, -1, 68
TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """c [n, m] += b^T [n, k] a [k, m] of contiguous rows, as BLAS, which counts by columns, is asked for it.

    There it is C [m, n] += A [m, k] B^T [k, n] with the leading dimensions lda, ldb, ldc.
    """

    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int


def gemm_of(rows: Tensor, columns: Tensor) -> Gemm:
    """The gradient rows^T columns of a weight [outputs, inputs]: rows [count, outputs], columns [count, inputs]."""
    (count, outputs), inputs = rows.shape, columns.shape[1]
    return Gemm(m=inputs, n=outputs, k=count, lda=inputs, ldb=outputs, ldc=inputs)


def is_here() -> bool:
    """Whether torch's cuBLAS is found."""
    return _library() is not None


def add_product_(into: Tensor, rows: Tensor, columns: Tensor) -> None:
    """into [outputs, inputs], fp32, += rows^T columns: [count, outputs], [count, inputs] of one 16-bit format or fp32.

    On a CPU the product is rounded to that format first. Raises RuntimeError where cuBLAS refuses.
    """
    (count, outputs), inputs = rows.shape, columns.shape[1]
    expect(count * inputs, rows.dtype, columns=columns)
    expect(count * outputs, rows.dtype, rows=rows)
    expect(outputs * inputs, torch.float32, into=into)
    if count == 0:
        return
    if not rows.is_cuda:
        into.add_(rows.t() @ columns)
        return
    library, gemm = _library(), gemm_of(rows, columns)
    assert library is not None
    kind, one = TYPES[rows.dtype], ctypes.byref(ctypes.c_float(1.0))
    code = library.cublasGemmEx(
        ctypes.c_void_p(torch.cuda.current_blas_handle()), NOT_TRANSPOSED, TRANSPOSED, gemm.m, gemm.n, gemm.k,
        one, ctypes.c_void_p(columns.data_ptr()), kind, gemm.lda, ctypes.c_void_p(rows.data_ptr()), kind, gemm.ldb,
        one, ctypes.c_void_p(into.data_ptr()), TYPES[into.dtype], gemm.ldc, COMPUTE_FLOAT, DEFAULT_ALGORITHM,
    )  # fmt: skip
    if code != 0:
        raise RuntimeError(f"cublasGemmEx: status {code} for {gemm}")


@functools.cache
def _library() -> ctypes.CDLL | None:
    # By the name under which torch has loaded it.
    try:
        return ctypes.CDLL(f"libcublas.so.{str(torch.version.cuda).split('.')[0]}")
    except OSError:
        return None
