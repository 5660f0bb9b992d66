"""tools/convert_checkpoint.py as typed."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.errors import UserError
from tests.checkpoint.hub import CASES, change_config, hub_model, save_hub
from tests.commands import run
from tools import convert_checkpoint

convert = partial(run, "tools/convert_checkpoint.py", environment={"HF_HUB_OFFLINE": "1"})


def test_there_and_back_as_typed(tmp_path: Path) -> None:
    theirs = hub_model("megatron-bert gelu_new, odd eps")
    folder = save_hub(theirs, tmp_path / "in", lower_case=False)
    there = convert("from-hf", "--input", folder, "--save", tmp_path / "save")
    assert there.returncode == 0, there.stderr
    assert there.stdout.startswith(f"MLM logits, SOP logits equal those of transformers {transformers.__version__} to ")
    assert there.stderr == ""
    onnx = tmp_path / "model.onnx"
    back = convert("to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out", "--onnx", onnx)
    assert back.returncode == 0, back.stderr
    assert back.stderr == ""
    assert f"{onnx}: outputs of onnxruntime equal to " in back.stdout
    assert back.stdout.splitlines()[-1] == f"wrote {tmp_path / 'out'}"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert {name: tensor.tolist() for name, tensor in before.items()} == {
        name: tensor.tolist() for name, tensor in after.items()
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    model = transformers.AutoModel.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.do_lower_case is False
    encoded = tokenizer("今天天气很好 A", return_tensors="pt")
    assert model(**encoded).last_hidden_state.shape == (1, 9, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the first argument must be to-hf, from-hf, to-megatron or from-megatron"),
        (("to-hf", "--load", "nowhere", "--output", "out"), "nowhere holds no checkpoint"),
        (("from-hf", "--input", "nowhere", "--save", "out"), "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_message(arguments: tuple[str, ...], message: str) -> None:
    result = convert(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("convert_checkpoint.py: error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()


@pytest.mark.parametrize("head", ["ForPreTraining", "Model", "ForMaskedLM"])
@pytest.mark.parametrize("case", CASES)
def test_the_check_compares_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str, head: str
) -> None:
    folder = save_hub(hub_model(case, head), tmp_path / "in")
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")
    call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out")
    output = {"ForPreTraining": "MLM logits, SOP logits", "Model": "hidden states", "ForMaskedLM": "MLM logits"}[head]
    assert capsys.readouterr().out.count(f"{output} equal those of transformers") == 2


def test_to_megatron_lm_and_back_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_hub(hub_model("megatron-bert"), tmp_path / "in")
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")
    there = tmp_path / "megatron"
    flags = ("--pipeline-model-parallel-size", 2, "--naming", "core")
    call(monkeypatch, "to-megatron", "--load", tmp_path / "save", "--output", there, *flags)
    call(monkeypatch, "from-megatron", "--input", there, "--save", tmp_path / "back", "--vocab-size", 40)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(
        "note: start Megatron-LM with --finetune --tensor-model-parallel-size 1 --pipeline-model"
    )
    assert lines[3:] == [f"wrote {there}", "note: the optimizer's state is not converted", f"wrote {tmp_path / 'back'}"]
    call(monkeypatch, "to-hf", "--load", tmp_path / "back", "--output", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        call(monkeypatch, "from-megatron", "--input", tmp_path / "nowhere", "--save", tmp_path / "other")


def test_tokens_added_and_files_of_a_size_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    (tmp_path / "new.txt").write_text("新\n词\n", encoding="utf-8")
    new = ("--extend-vocab", tmp_path / "new.txt")
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save", *new)
    small = ("--max-shard-size", 2e-5)
    call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out", *small)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "out" / "vocab.txt").read_text(encoding="utf-8").splitlines()[-2:] == ["新", "词"]
    with pytest.raises(UserError, match="--max-shard-size must be positive"):
        call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "x", "--max-shard-size", 0)


def test_folders_of_clue_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    change_config(folder, model_type="roberta", vocab_size=21128)
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")


def test_old_names_of_layernorm_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    state = load_file(folder / "model.safetensors")
    names = {name: name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in state}
    names = {name: new.replace("LayerNorm.bias", "LayerNorm.beta") for name, new in names.items()}
    save_file({names[name]: tensor for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")


def test_a_wrong_conversion_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.checkpoint import huggingface

    folder = save_hub(hub_model("bert"), tmp_path / "in")
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")
    # the order of query, key and value that Megatron-LM had at first
    monkeypatch.setattr(huggingface, "split", lambda tensor, heads, parts: list(tensor.chunk(parts)))
    with pytest.raises(convert_checkpoint.UserError, match="MLM logits of both sides differ by"):
        call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "save"]


def test_without_transformers_the_check_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    monkeypatch.setitem(sys.modules, "transformers", None)
    call(monkeypatch, "from-hf", "--input", folder, "--save", tmp_path / "save")
    assert "transformers is not installed" in capsys.readouterr().out
