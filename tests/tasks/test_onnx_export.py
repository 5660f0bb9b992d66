"""ONNX files of every head, run by onnxruntime against transformers on the same inputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron.errors import UserError
from megatron.tasks import onnx_export
from tests.checkpoint.heads import ARCHITECTURES, CLASSES, call, fine_tuned
from tests.checkpoint.hub import hub_model, save_hub

onnxruntime = pytest.importorskip("onnxruntime")


def assert_as_transformers(file: Path, theirs: Any, *sizes: int) -> None:
    """Equal outputs; sizes: of the inputs. The last sample has padding."""
    tokens = torch.randint(40, sizes, generator=torch.Generator().manual_seed(9))
    mask = torch.ones_like(tokens)
    mask[-1, ..., (sizes[-1] + 1) // 2 :] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": (tokens > 20).long()}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True))
    with torch.no_grad():
        expected = theirs(**inputs)
    for name, values in found.items():
        torch.testing.assert_close(torch.from_numpy(values), expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, architecture: str
) -> None:
    fine_tuned(tmp_path / "save", kind, architecture)
    file = tmp_path / "onnx" / "model.onnx"
    call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out", "--onnx", file)
    assert f"{file}: outputs of onnxruntime equal to " in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    theirs = getattr(transformers, f"AutoModel{CLASSES[kind][0]}").from_pretrained(tmp_path / "out").eval()
    for batch, sequence in ((1, 2), (5, 20), (3, 11)):
        sizes = (batch, 3, sequence) if kind == "multiple-choice" else (batch, sequence)
        assert_as_transformers(file, theirs, *sizes)


@pytest.mark.parametrize("head", ["ForPreTraining", "Model"])
@pytest.mark.parametrize("case", ["megatron-bert gelu_new, odd eps", "ernie 3.0"])
def test_models_without_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, head: str) -> None:
    call(monkeypatch, "from-hf", "--input", save_hub(hub_model(case, head), tmp_path / "in"), "--save", tmp_path / "s")
    file = tmp_path / "model.onnx"
    call(monkeypatch, "to-hf", "--load", tmp_path / "s", "--output", tmp_path / "out", "--onnx", file)
    auto = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    assert_as_transformers(file, auto.from_pretrained(tmp_path / "out").eval(), 3, 9)


def test_without_the_packages_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine_tuned(tmp_path / "save", "tagging", "bert")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    flags = ("--load", tmp_path / "save", "--output", tmp_path / "out", "--onnx", tmp_path / "m.onnx")
    with pytest.raises(UserError, match="needs the packages onnx and onnxruntime .*pip install onnx onnxruntime"):
        call(monkeypatch, "to-hf", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["save"]


def test_a_wrong_file_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine_tuned(tmp_path / "save", "classification", "bert")
    flags = ("--load", tmp_path / "save", "--output", tmp_path / "out", "--onnx")
    with pytest.raises(UserError, match="--onnx /dev/null/m.onnx cannot be written: "):
        call(monkeypatch, "to-hf", *flags, "/dev/null/m.onnx")
    traced = torch.onnx.export

    def broken(model: onnx_export.OnnxModel, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            model.model.task_head.bias.add_(1e-3)
            traced(model, *arguments, **options)
            model.model.task_head.bias.sub_(1e-3)

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", broken)
        with pytest.raises(UserError, match="logits of onnxruntime differ by 1.0e-03"):
            call(monkeypatch, "to-hf", *flags, tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="an ONNX file holds 2 GB"):
        call(monkeypatch, "to-hf", *flags, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["save"]
