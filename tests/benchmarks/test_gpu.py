"""The benchmark of a GPU, on a CPU: every part runs and is written."""

import json
from pathlib import Path

import pytest

from tests.commands import run


def test_every_part_is_measured_and_parts_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    small = ("benchmarks/gpu.py", "--device", "cpu", "--small", "--output", output)
    done = run(*small, "--parts", "ceilings", "kernels")
    assert done.returncode == 0, done.stderr
    done = run(*small, "--parts", "steps")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["machine"]["kernels"]["why"] == "no GPU"
    (kernels,) = found["kernels"].values()
    assert len(kernels) == 13 and all(row["of_copy"] > 0 and row["microseconds"] > 0 for row in kernels.values())
    (step,) = found["steps"].values()
    assert step["of_product"] == pytest.approx(step["tflops_per_second"] / found["ceilings"]["product"], rel=1e-6)
    assert step["transformers"]["tokens_per_second"] > 0


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("benchmarks/gpu.py", "--output", tmp_path / "gpu.json")
    assert done.returncode == 2 and done.stderr.endswith("gpu.py: error: PyTorch sees no GPU\n")
    assert not (tmp_path / "gpu.json").exists()
