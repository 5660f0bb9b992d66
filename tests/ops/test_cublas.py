import numpy as np
import pytest
import torch

from megatron.ops.cublas import add_product_, gemm_of

SIZES = [(1, 1, 1), (7, 3, 5), (64, 24, 40)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_blas_gives_the_weight_gradient_for_these_arguments(sizes: tuple[int, int, int]) -> None:
    """BLAS itself on the same memory, read by columns with the leading dimensions that cuBLAS is given."""
    count, outputs, inputs = sizes
    rows, columns, into = torch.randn(count, outputs), torch.randn(count, inputs), torch.randn(outputs, inputs)
    gemm = gemm_of(rows, columns)
    a, b, c = (
        np.lib.stride_tricks.as_strided(x.numpy(), (height, width), (4, 4 * stride))
        for x, height, width, stride in (
            (columns, gemm.m, gemm.k, gemm.lda), (rows, gemm.n, gemm.k, gemm.ldb), (into, gemm.m, gemm.n, gemm.ldc)
        )
    )  # fmt: skip
    blas = pytest.importorskip("scipy.linalg").blas
    found = blas.sgemm(1.0, a, b, beta=1.0, c=c, trans_a=False, trans_b=True)
    torch.testing.assert_close(torch.from_numpy(found.T.copy()), into + rows.t() @ columns)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_gpu_adds_without_rounding_the_product(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    count, outputs, inputs = sizes
    rows, columns = (torch.randn(count, n, device="cuda").to(dtype) for n in (outputs, inputs))
    into = torch.randn(outputs, inputs, device="cuda")
    exact = into.double() + rows.double().t() @ columns.double()
    add_product_(into, rows, columns)
    torch.testing.assert_close(into, exact.float(), rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="into: 6 x torch.float32; expected 8"):
        add_product_(torch.zeros(2, 3), torch.zeros(5, 2), torch.zeros(5, 4))
