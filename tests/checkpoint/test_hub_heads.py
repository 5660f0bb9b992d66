"""Fine-tuned models as Hugging Face folders: the class of every head, its labels, its logits; and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron.checkpoint import find_checkpoint, read_config
from megatron.checkpoint.huggingface import read_huggingface, to_huggingface
from megatron.errors import UserError
from megatron.model import BertForPrompts, BertForTask
from tests.checkpoint.heads import ARCHITECTURES, CLASSES, SINGLE, TAGS, call, fine_tuned
from tests.checkpoint.hub import assert_same_weights, hub_model, save_hub


@torch.no_grad()
def both_logits(ours: BertForTask | BertForPrompts, theirs: Any, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the same random input, at tokens that are no padding."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(40, (4, 17), generator=generator)
    types = torch.randint(2, (4, 17), generator=generator)
    lengths = torch.tensor([17, 5, 11, 2])
    real = torch.arange(17) < lengths[:, None]
    inputs = {"input_ids": tokens, "token_type_ids": types, "attention_mask": real.long()}
    if kind == "multiple-choice":  # two samples of two choices
        output = theirs(**{name: value.reshape(2, 2, 17) for name, value in inputs.items()})
        return ours(tokens, types, lengths, None).reshape(2, 2), output.logits
    output = theirs(**inputs)
    if kind == "prompts":
        masks = torch.tensor([[1, 3], [2, 4], [7, 9], [0, 1]])
        candidates = torch.randint(40, (4, 3, 2), generator=generator)
        logits = output.logits[torch.arange(4)[:, None], masks]  # [samples, blanks, vocabulary]
        scores = logits.gather(2, candidates.transpose(1, 2)).sum(1)
        return ours(tokens, types, lengths, masks, candidates, None), scores
    logits = ours(tokens, types, lengths, None)
    if kind == "reading":
        return logits[real], torch.stack([output.start_logits, output.end_logits], 2)[real]
    return (logits[real], output.logits[real]) if kind == "tagging" else (logits, output.logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_head_is_the_class_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, architecture: str
) -> None:
    ours = fine_tuned(tmp_path / "save", kind, architecture)
    call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out")
    told = capsys.readouterr().out
    assert ("MLM logits equal" if kind == "prompts" else "logits equal") in told
    assert "note" not in told
    ending, labels = CLASSES[kind]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [ARCHITECTURES[architecture] + ending]
    auto = getattr(transformers, f"AutoModel{ending}")
    theirs, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs).__name__ == config["architectures"][0]
    if labels:
        assert theirs.config.id2label == dict(enumerate(labels))
        assert theirs.config.label2id == {label: number for number, label in enumerate(labels)}
    mine, others = both_logits(ours, theirs.eval(), kind)
    torch.testing.assert_close(mine, others, rtol=1e-5, atol=1e-4)

    call(monkeypatch, "from-hf", "--input", tmp_path / "out", "--save", tmp_path / "back")
    told = capsys.readouterr().out
    assert f"fine-tuned for {kind}" in told
    original, back = (find_checkpoint(tmp_path / name, context=SINGLE) for name in ("save", "back"))
    assert original is not None and back is not None
    assert read_config(back)["task"] == read_config(original)["task"]
    to_huggingface(tmp_path / "back", tmp_path / "again")
    assert_same_weights(tmp_path / "again", theirs)


@pytest.mark.parametrize("kind", ["tagging", "reading", "multiple-choice"])
def test_ernie_with_task_types_has_the_same_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ours = fine_tuned(tmp_path / "save", kind, "bert", task_type_vocab_size=3)
    call(monkeypatch, "to-hf", "--load", tmp_path / "save", "--output", tmp_path / "out")
    theirs = getattr(transformers, f"Ernie{CLASSES[kind][0]}").from_pretrained(tmp_path / "out").eval()
    mine, others = both_logits(ours, theirs, kind)
    torch.testing.assert_close(mine, others, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"head": "painting", "labels": TAGS}, "is fine-tuned for 'painting', which no Hugging Face class is for"),
        ({"head": "tagging", "labels": TAGS[:3]}, "the labels of its task do not fit its head"),
        ({"head": "tagging", "labels": "OBI"}, "the labels of its task do not fit its head"),
        ({"head": "reading"}, "the labels of its task do not fit its head"),
        ({"head": "prompts"}, "is fine-tuned for 'prompts'"),
        ("tagging", "is fine-tuned for None"),
    ],
)
def test_a_description_of_another_head_is_named(tmp_path: Path, task: Any, message: str) -> None:
    fine_tuned(tmp_path / "save", "tagging", "bert", task=task)
    with pytest.raises(UserError) as error:
        to_huggingface(tmp_path / "save", tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


# Folders of others


def their_folder(folder: Path, ending: str) -> Path:
    return save_hub(hub_model("bert", ending), folder)


def test_the_head_of_a_folder_of_others_is_kept_with_its_labels(tmp_path: Path) -> None:
    for ending, kind in (("ForTokenClassification", "tagging"), ("ForSequenceClassification", "classification")):
        folder = their_folder(tmp_path / kind, ending)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "id2label": {"0": "昨", "1": "今"}}), encoding="utf-8")
        hub = read_huggingface(folder)
        assert hub.task == {"name": kind, "head": kind, "labels": ["昨", "今"], "seq_length": 21}
        assert f"fine-tuned for {kind}, 2 labels" in hub.notices
        assert hub.parameters["task_head.weight"].shape == (2, 24)
        path.write_text(json.dumps({**config, "id2label": None}), encoding="utf-8")
        again = read_huggingface(folder).task
        assert again is not None and again["labels"] == ["LABEL_0", "LABEL_1"]


def test_a_head_of_no_task_here_is_left_out(tmp_path: Path) -> None:
    assert read_huggingface(their_folder(tmp_path / "lm", "ForMaskedLM")).task is None
    hub = read_huggingface(their_folder(tmp_path / "nsp", "ForNextSentencePrediction"))
    assert hub.task is None
    folder = their_folder(tmp_path / "qa", "ForQuestionAnswering")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "architectures": ["BertForMultipleChoice"]}), encoding="utf-8")
    hub = read_huggingface(folder)
    assert hub.task is None and "task_head.weight" not in hub.parameters
    assert any("not converted: qa_outputs.bias" in notice for notice in hub.notices)


# In transformers' own pipelines


def test_pipelines_take_the_folders(tmp_path: Path) -> None:
    for kind in ("classification", "tagging", "prompts"):
        fine_tuned(tmp_path / kind, kind, "megatron-bert")
        to_huggingface(tmp_path / kind, tmp_path / f"{kind}-hub")
    options: dict[str, Any] = {"device": "cpu"}
    classify = transformers.pipeline("text-classification", str(tmp_path / "classification-hub"), top_k=None, **options)
    (found,) = classify(["今天天气很好"])
    assert {row["label"] for row in found} == set(CLASSES["classification"][1])
    tag = transformers.pipeline("token-classification", str(tmp_path / "tagging-hub"), ignore_labels=[], **options)
    found = tag("今天天气")
    assert [row["word"] for row in found] == list("今天天气")
    assert {row["entity"] for row in found} <= set(TAGS)
    fill = transformers.pipeline("fill-mask", str(tmp_path / "prompts-hub"), **options)
    assert len(fill("今天[MASK]很好", top_k=3)) == 3
