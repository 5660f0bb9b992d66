"""The kernels as nvcc compiles them for GPUs: what does not show where they are emulated."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from tools import build_kernels
from tools.build_kernels import Kernel

NVCC = build_kernels.nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

# Bytes that a thread may keep in memory for want of registers: rows of odd widths only, which no model has.
ALLOWED = {r"^backward_kernel<.*, 1, (1024|512), (float|BFloat16)>$": 256}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    assert NVCC is not None
    library = tmp_path_factory.mktemp("kernels") / "lib.so"
    found = build_kernels.build(library, NVCC)
    assert ctypes.CDLL(str(library)).megatron_cuda_kernels  # all that it needs is in it
    return found


def test_every_kernel_is_there_for_both_targets(kernels: list[Kernel]) -> None:
    of_target = {target: [k.name for k in kernels if k.target == target] for target in ("sm_80", "sm_90")}
    assert of_target["sm_80"] == of_target["sm_90"] and len(kernels) == 2 * len(of_target["sm_90"]) > 100


def test_no_kernel_spills_registers_beyond_the_table(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        allowed = max((size for name, size in ALLOWED.items() if re.search(name, kernel.name)), default=0)
        assert kernel.spilled <= allowed, kernel


@pytest.mark.parametrize("source", sorted(build_kernels.SOURCES.glob("*.cu")), ids=lambda path: path.stem)
def test_aligned_rows_are_read_and_written_16_bytes_at_a_time(source: Path, tmp_path: Path) -> None:
    assert NVCC is not None
    code = tmp_path / "kernels.ptx"
    command = [NVCC, *build_kernels.FLAGS.split(), "-arch=sm_90", "-ptx", str(source), "-o", str(code)]
    subprocess.run(command, check=True)
    for entry in code.read_text().split(".entry ")[1:]:
        name = entry[: entry.index("(")]
        if "BFloat16" in name and "ELi8E" in name:  # 8 numbers at a time
            assert re.search(r"(ld|st)\.global\.v4", entry), name
            assert not re.search(r"(ld|st)\.global\.[bu]16", entry), name
