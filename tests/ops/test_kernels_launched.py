"""What launchers do with shapes: limits, alignment, grids; and that the emulation finds what it is there to find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from megatron.native import _C
from megatron.ops import operators
from megatron.ops.add_norm import Norm, layernorm
from megatron.ops.bias_activation import bias_activation
from megatron.ops.main_grad import add_sum
from tests.ops.places import EMULATED

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.parametrize("place", [EMULATED], indirect=True)]


def ones(columns: int) -> Norm:
    return Norm(weight=torch.ones(columns), shift=torch.zeros(columns), epsilon=1e-5)


def test_a_row_too_long_for_a_block_is_refused_by_name() -> None:
    columns = operators.MOST_COLUMNS + 1
    with pytest.raises(RuntimeError, match=r"a row has more columns than a block of threads keeps \(8192\)"):
        layernorm(torch.randn(1, columns), ones(columns))
    x = torch.randn(1, operators.MOST_COLUMNS)
    torch.testing.assert_close(layernorm(x, ones(x.shape[1])), torch.nn.functional.layer_norm(x, x.shape[1:]))


def test_which_rows_the_kernels_take() -> None:
    x = torch.empty(1, device="meta")
    assert not operators.is_compiled(x)
    assert not operators.is_compiled(torch.empty(1, dtype=torch.float16))
    assert operators.is_compiled(torch.empty(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_memory_that_does_not_start_at_16_bytes(offset: int) -> None:
    """Whole vectors in every row, but not where they could be read as such."""
    memory = torch.randn(1000)
    x, bias = memory[offset : offset + 5 * 64].view(5, 64), memory[600 + offset : 664 + offset]
    torch.testing.assert_close(bias_activation(x, bias, "relu"), torch.relu(x + bias))


@pytest.mark.parametrize(("rows", "columns"), [(1, 24), (1056, 24), (1057, 24), (700, 2048), (140, 20_000)])
def test_sums_over_more_rows_than_parts(rows: int, columns: int) -> None:
    x, parameter = torch.randn(rows, columns), torch.nn.Parameter(torch.zeros(columns))
    given = add_sum(parameter, x)
    assert given is not None
    torch.testing.assert_close(given, x.double().sum(0).float(), atol=1e-4, rtol=1e-5)


def test_parts_are_many_for_narrow_rows_and_few_for_wide_ones() -> None:
    assert [_C.parts_of(10_000, columns) for columns in (1, 1024, 2048, 21_248)] == [1056, 1056, 528, 132]
    assert _C.parts_of(5, 1024) == 5


def test_the_same_sums_whatever_the_order_of_calls() -> None:
    x = torch.randn(700, 40)
    first, second = (add_sum(torch.nn.Parameter(torch.zeros(40)), x) for _ in range(2))
    assert first is not None and second is not None and torch.equal(first, second)


def test_a_library_of_another_kind_is_refused(tmp_path: Path) -> None:
    source, library = tmp_path / "none.c", tmp_path / "libnone.so"
    source.write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(RuntimeError, match="is not a library of the kernels"):
        _C.load_cuda_kernels(str(library))
    with pytest.raises(RuntimeError, match="cannot open shared object"):
        _C.load_cuda_kernels(str(tmp_path / "missing.so"))


@pytest.mark.parametrize(("body", "expected"), [
    ("if (threadIdx.x < 3) __syncthreads();", 719),
    ("__syncthreads(); sum += __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);", 0),
])  # fmt: skip
def test_the_emulation_sees_threads_that_wait_without_end(body: str, expected: int, tmp_path: Path) -> None:
    """A barrier that some threads do not reach."""
    program = tmp_path / "program.cpp"
    program.write_text(
        f"#include <emulated_cuda.h>\nunsigned sum = 0;\n__global__ void kernel() {{ {body} }}\n"
        "int main() { return emulated::run(dim3(2), 64, [] { kernel(); }) != EXPECTED; }\n"
    )
    include, binary = Path(__file__).parent, tmp_path / "program"
    command = ["c++", "-std=c++17", f"-I{include}", f"-DEXPECTED={expected}", str(program), "-o", str(binary)]
    subprocess.run(command, check=True)
    assert subprocess.run([str(binary)], check=False).returncode == 0
