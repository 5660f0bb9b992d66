"""The benchmark of a GPU, on a CPU: every part runs and is written."""

import json
from pathlib import Path

import pytest

from tests.commands import ROOT, run


def test_every_part_is_measured_and_parts_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    small = ("benchmarks/gpu.py", "--device", "cpu", "--small", "--output", output)
    done = run(*small, "--parts", "ceilings", "kernels")
    assert done.returncode == 0, done.stderr
    done = run(*small, "--parts", "steps")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["machine"]["kernels"]["why"] == "no GPU"
    activations, logits = found["kernels"].values()
    assert len(activations) == 11 and set(logits) == {"cross-entropy", "cross-entropy, backward"}
    for row in (*activations.values(), *logits.values()):
        assert row["of_copy"] > 0 and row["microseconds"] > 0 and row["torch_compile_against_it"] > 0
    (step,) = found["steps"].values()
    for name in ("ours", "ours, graph"):
        share = step[name]["tflops_per_second"] / found["ceilings"]["product"]
        assert step[name]["of_product"] == pytest.approx(share, rel=1e-6)
    assert step["transformers"]["tokens_per_second"] > 0


def test_the_page_has_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import render

    for name, speed in (("a", 100.0), ("b", 200.0)):
        found = {
            "machine": {"device": name.upper(), "torch": "2.11"},
            "ceilings": {"product": 800.0, "copy": 3000.0, "tiny": {"head": 500.0}},
            "steps": {
                "tiny": {
                    "ours, graph": {"samples": 8, "tokens_per_second": 4 * speed, "of_product": 0.25, "peak_gb": 1.0},
                    "transformers": {"samples": 4, "tokens_per_second": speed, "peak_gb": 2.0},
                }
            },
            "kernels": {
                "8 x 64": {"LayerNorm": {"microseconds": 7.0, "of_copy": 0.9, "torch_compile_against_it": 1.5}}
            },
        }
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    page = render.rendered("# GPUs\n<!-- gpu -->\nold\n<!-- end -->\n<!-- step -->\nkept\n<!-- end -->\n")
    assert "old" not in page and "kept" in page
    for row in ("A, torch 2.11.", "B, torch 2.11.", "| tiny | 500 |", "| LayerNorm, 8 x 64 | 7 | 90% | 1.50x |"):
        assert row in page
    assert "| tiny: ours, graph | 8 | 400 | 25% | 1.0 | 1.00x |" in page
    assert "| tiny: transformers | 4 | 200 |  | 2.0 | 4.00x |" in page


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("benchmarks/gpu.py", "--output", tmp_path / "gpu.json")
    assert done.returncode == 2 and done.stderr.endswith("gpu.py: error: PyTorch sees no GPU\n")
    assert not (tmp_path / "gpu.json").exists()
