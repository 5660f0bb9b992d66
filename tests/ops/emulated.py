"""The CUDA kernels compiled for a CPU, where emulated_cuda.h has the threads of a block take turns."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-x c++ -std=c++17 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas".split()


def build(library: Path) -> Path:
    """Compile and link the kernels to `library`."""
    compiler = os.environ.get("CXX", "c++")
    sources = sorted((ROOT / "csrc" / "kernels").glob("*.cu"))
    objects = [library.with_name(f"{source.stem}.o") for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        definitions = ["-DMEGATRON_EMULATED_CUDA", f"-I{Path(__file__).parent}"]
        subprocess.run([compiler, *FLAGS, *definitions, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library
