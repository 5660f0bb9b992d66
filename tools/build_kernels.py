"""Compile the CUDA kernels (csrc/kernels/*.cu) to one library beside the package, for compute capabilities 8.0 and 9.0.

    python tools/build_kernels.py                   # what `make kernels` does; needs nvcc, and neither a GPU nor torch
    python tools/build_kernels.py --registers       # also: registers and spills of each kernel, as nvcc tells them

The library holds machine code for sm_80 and sm_90 and intermediate code for what comes after them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "kernels"
LIBRARY = ROOT / "megatron" / "libmegatron_cuda.so"
TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]
FLAGS = "-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden,-Wall"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What nvcc says of a kernel on a target. spilled: bytes of registers that a thread keeps in memory."""

    name: str
    target: str
    registers: int
    spilled: int


def nvcc() -> str | None:
    """The compiler: in PATH, or in CUDA_HOME."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home, "bin", "nvcc")))


def build(library: Path, compiler: str) -> list[Kernel]:
    """Compile and link; an existing library stays as it is until the new one is whole. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = sorted(SOURCES.glob("*.cu"))
        objects = [Path(folder, f"{source.stem}.o") for source in sources]
        said = pool.map(lambda pair: _compile(compiler, *pair), zip(sources, objects, strict=True))
        kernels = [kernel for text in said for kernel in _kernels(text)]
        new = library.with_name(f".{library.name}.new")
        _run([compiler, "-shared", *map(str, objects), "-o", str(new)])
        new.replace(library)
    return kernels


def _compile(compiler: str, source: Path, target: Path) -> str:
    targets = [word for code in TARGETS for word in ("-gencode", code)]
    return _run([compiler, *FLAGS.split(), *targets, "-Xptxas", "-v", "-c", str(source), "-o", str(target)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout


def _kernels(said: str) -> list[Kernel]:
    found = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'.*?"
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return [
        Kernel(
            name=_readable(one["name"]),
            target=one["target"],
            registers=int(one["registers"]),
            spilled=max(int(one["stores"]), int(one["loads"])),
        )
        for one in found.finditer(said)
    ]


def _readable(name: str) -> str:
    """A mangled name as C++ has it, where c++filt is installed."""
    if shutil.which("c++filt") is None:
        return name
    plain = _run(["c++filt", name]).strip().replace("(anonymous namespace)", "").replace("megatron::", "")
    return re.sub(r"^void |\(.*\)$", "", plain).lstrip(":")


def main() -> None:
    """Compile, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=LIBRARY)
    parser.add_argument("--registers", action="store_true", help="print a line for each kernel")
    options = parser.parse_args()
    compiler = nvcc()
    if compiler is None:
        parser.error("no CUDA kernels: nvcc is neither in PATH nor in CUDA_HOME/bin (install the CUDA toolkit)")
    try:
        kernels = build(options.output, compiler)
    except subprocess.CalledProcessError as error:
        parser.error(f"nvcc failed: {' '.join(error.cmd)}")
    for kernel in kernels if options.registers else []:
        print(f"{kernel.target}  {kernel.registers:3} registers  {kernel.spilled:3} bytes spilled  {kernel.name}")
    print(f"wrote {options.output}: {len(kernels)} kernels")


if __name__ == "__main__":
    main()
