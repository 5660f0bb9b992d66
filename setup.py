"""Installation: the package `megatron`, its dependencies as ranges, and its C++ helpers `megatron._C`.

The exact versions that are tested together stand in constraints.txt; `make install` uses both.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
OPENMP_PROBE = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"


class BuildExtension(build_ext):
    """Adds OpenMP where the compiler has it, and builds the CUDA kernels where nvcc is."""

    def run(self) -> None:
        super().run()
        library = Path(self.get_ext_fullpath("megatron._C")).with_name("libmegatron_cuda.so")
        # May fail: without nvcc there is hardly a GPU, and everything else works without the kernels.
        builder = ROOT / "tools" / "build_kernels.py"
        subprocess.run([sys.executable, str(builder), "--output", str(library)], check=False)

    def build_extensions(self) -> None:
        if self.has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
        super().build_extensions()

    def has_openmp(self) -> bool:
        """Whether a program with OpenMP compiles and links."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(OPENMP_PROBE)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                return False
        return True


def extension() -> Pybind11Extension:
    """`megatron._C` from every source in csrc/."""
    return Pybind11Extension(
        "megatron._C",
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
        cxx_std=17,
        # Loops over rows become vectors: of roots and choices too, which need not set errno or trap.
        extra_compile_args=["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"],
    )


def version() -> str:
    """`megatron.__version__`, read without importing the package."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "megatron" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("megatron/__init__.py has no __version__")
    return found[1]


TRANSFORMERS = ["transformers>=5.0"]
TENSORBOARD = ["tensorboard>=2.18"]
CLEANING = ["opencc>=1.1", "rensa>=0.5"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]

ParallelCompile("MAX_JOBS").install()
setup(
    name="megatron-clue",
    version=version(),
    description="A 3D-parallel engine for pre-training and fine-tuning Chinese BERT-like encoders",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["megatron", "megatron.*"]),
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    install_requires=[
        "torch>=2.11",
        "numpy>=2.0",
        "tokenizers>=0.21",
        "sentencepiece>=0.2.3",
        "regex>=2024.4",
        "safetensors>=0.5",
        "tyro>=1.0",
        "pyyaml>=6.0",
        "zstandard>=0.23",
        "orjson>=3.10",
        "isal>=1.7",
        "jieba>=0.42",
        "nltk>=3.9",
        "scipy>=1.13",
        'tomli>=2.0; python_version < "3.11"',
    ],
    extras_require={
        "quickstart": ["snownlp>=0.12.3", "matplotlib>=3.9", *TRANSFORMERS],
        "transformers": TRANSFORMERS,
        "tensorboard": TENSORBOARD,
        "cleaning": CLEANING,
        "onnx": ONNX,
        "ray": ["ray>=2.40"],
        "wandb": ["wandb>=0.19"],
        "dev": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scikit-learn>=1.5",
            "seqeval>=1.2",
            "rjieba>=0.2",
            "ruff>=0.9",
            "mypy>=1.15",
            "import-linter>=2.1",
            "types-pyyaml",
            *TRANSFORMERS,
            *TENSORBOARD,
            *CLEANING,
            *ONNX,
        ],
    },
)
