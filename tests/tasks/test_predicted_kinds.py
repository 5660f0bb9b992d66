"""Every kind of task, fine-tuned: its rows predicted one by one are the run's submission, from the export, too."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.predictor import load_predictor
from tests.checkpoint.heads import call as convert
from tests.tasks.test_predictor import call as predict
from tests.tasks.tiny import (
    CHARACTERS,
    write_bustm,
    write_c3,
    write_checkpoint,
    write_entities,
    write_reading,
    write_sentiment,
)

WORDS = "不相能可以正确错误"
Rows = list[dict[str, Any]]


def lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def text(rng: random.Random, longest: int = 30) -> str:
    return "".join(rng.choices(CHARACTERS[2:], k=rng.randint(2, longest)))


def splits(folder: Path, make: Callable[[random.Random, int], dict[str, Any]], answer: str, few: bool = False) -> Rows:
    """Files of rows with an id, without their answer in the test file, whose rows are returned."""
    folder.mkdir()
    for name, count in (("train", 40), ("dev", 16), ("test", 12)):
        rng = random.Random(name)
        rows = [{"id": 700 - number, **make(rng, number)} for number in range(count)]
        if name == "test":
            rows = [{key: value for key, value in row.items() if key != answer} for row in rows]
        lines(folder / (f"{name}_0.json" if few and name != "test" else f"{name}.json"), rows)
    return rows


def sentiment(folder: Path) -> Rows:
    write_sentiment(folder)
    rows = (folder / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [{"text": row.split("\t")[2]} for row in rows]


def pairs(folder: Path) -> Rows:
    return splits(folder, lambda rng, n: {"text1": "天棋"[n % 2] * 9, "text2": text(rng), "label": n % 2}, "label")


def c3(folder: Path) -> Rows:
    write_c3(folder, train=30)
    documents = json.loads((folder / "test1.1.json").read_text(encoding="utf-8"))
    return [{"context": "".join(document), **question} for document, (question,), _ in documents]


def race(folder: Path) -> Rows:
    rows = []
    for name, count in (("train", 20), ("dev", 6), ("test", 6)):
        rng = random.Random(name)
        article = {
            "questions": [f"{text(rng, 5)}_{text(rng, 5)}" for _ in range(count)],
            "options": [[text(rng, 4) for _ in range(4)] for _ in range(count)],
            "article": text(rng),
            **({} if name == "test" else {"answers": ["ABCD"[n % 4] for n in range(count)]}),
            "id": "high7.txt",
        }
        folder.mkdir(exist_ok=True)
        lines(folder / f"{name}.jsonl", [article])
        choices = zip(article["questions"], article["options"], strict=True)
        rows = [{"article": article["article"], "question": one, "options": options} for one, options in choices]
    return rows


def idioms(folder: Path) -> Rows:
    def make(rng: random.Random, number: int) -> dict[str, Any]:
        candidates = ["".join(rng.choices(CHARACTERS, k=4)) for _ in range(7)]
        return {"content": f"{text(rng)}#idiom#{text(rng)}", "candidates": candidates, "answer": number % 7}

    return splits(folder, make, "answer", few=True)


def bustm(folder: Path) -> Rows:
    write_bustm(folder)
    return [json.loads(line) for line in (folder / "test.json").read_text(encoding="utf-8").splitlines()]


def keywords(folder: Path) -> Rows:
    def make(rng: random.Random, number: int) -> dict[str, Any]:
        return {"abst": text(rng), "keyword": [text(rng, 3), "天棋"[number % 2] * 9], "label": str(number % 2)}

    return splits(folder, make, "label", few=True)


def pronouns(folder: Path) -> Rows:
    def make(rng: random.Random, number: int) -> dict[str, Any]:
        target = {"span1_text": "天地", "span1_index": 1, "span2_text": "人", "span2_index": 4}
        return {"text": f"山天地水人{'花鸟'[number % 2] * 9}", "target": target, "label": ("true", "false")[number % 2]}

    return splits(folder, make, "label", few=True)


def reading(folder: Path, unanswerable: bool = False) -> Rows:
    for name, contexts in (("train", 30), ("dev", 8), ("test", 8)):
        path = write_reading(folder / f"{name}.json", name.upper(), contexts=contexts, unanswerable=unanswerable)
    paragraphs = [part for document in json.loads(path.read_text("utf-8"))["data"] for part in document["paragraphs"]]
    return [{"question": qa["question"], "context": part["context"]} for part in paragraphs for qa in part["qas"]]


def unanswerable(folder: Path) -> Rows:
    return reading(folder, unanswerable=True)


def entities(folder: Path) -> Rows:
    write_entities(folder)  # some texts are longer than an input
    texts = (folder / "test.txt").read_text(encoding="utf-8").split("\n\n")
    return [{"text": "".join(line[0] for line in text.splitlines())} for text in texts]


def spans(row: dict[str, Any], prediction: dict[str, Any]) -> dict[str, Any]:
    """Entities as CLUENER2020 writes them."""
    found: dict[str, Any] = {}
    for each in prediction["entities"]:
        assert row["text"][each["first"] : each["last"] + 1] == each["text"]
        found.setdefault(each["type"], {}).setdefault(each["text"], []).append([each["first"], each["last"]])
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """files: writes them and gives the test file's rows to predict. answer: a prediction as its submission has it."""

    task: str
    files: Callable[[Path], Rows]
    answer: Callable[[dict[str, Any], dict[str, Any]], Any]
    ending: str
    prompt: bool = False


def label(row: dict[str, Any], prediction: dict[str, Any]) -> Any:
    return prediction["label"]


def choice(row: dict[str, Any], prediction: dict[str, Any]) -> Any:
    return prediction["choice"]


def found_text(row: dict[str, Any], prediction: dict[str, Any]) -> Any:
    assert row["context"][prediction["start"] : prediction["stop"]] == prediction["text"]
    return prediction["text"]


CASES = {
    "classification": Case("classification", sentiment, label, "SequenceClassification"),
    "pairs": Case("pairs", pairs, label, "SequenceClassification"),
    "choices": Case("c3", c3, choice, "MultipleChoice"),
    "race": Case("race", race, lambda row, prediction: "ABCD"[prediction["choice"]], "MultipleChoice"),
    "cloze": Case("fewclue-chid", idioms, choice, "MultipleChoice"),
    "reading": Case("cmrc2018", reading, found_text, "QuestionAnswering"),
    "no answer": Case("squad2", unanswerable, found_text, "QuestionAnswering"),
    "tagging": Case("tagging", entities, spans, "TokenClassification"),
    "prompts": Case("fewclue-bustm", bustm, label, "MaskedLM", prompt=True),
    "prompts, idioms": Case("fewclue-chid", idioms, choice, "MaskedLM", prompt=True),
    "prompts, keywords": Case("fewclue-csl", keywords, label, "MaskedLM", prompt=True),
    "prompts, pronouns": Case("fewclue-cluewsc", pronouns, label, "MaskedLM", prompt=True),
}


def submitted(path: Path) -> list[Any]:
    """The answers of a submission, in its order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(rows) == 1:
        return list(rows[0].values())
    return [row["label" if "label" in row else "answer"] for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_rows_alone_are_predicted_as_the_run_did_and_the_export_has_its_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    rows = case.files(tmp_path / "data")
    pretrained = write_checkpoint(tmp_path / "pretrained", characters=WORDS)
    finetune(
        FinetuneConfig(
            task=TaskConfig(task=case.task, data_dir=str(tmp_path / "data"), predict=True, prompt=case.prompt),
            source=ModelSourceConfig(pretrained_checkpoint=str(pretrained), output_dir=str(tmp_path / "out")),
            tuning=TuningConfig(epochs=8, global_batch_size=8, lr=5e-3, seq_length=64),
        ),
        ParallelContext.single(),
    )
    best, hub = tmp_path / "out" / "best", tmp_path / "hub"
    (submission,) = (tmp_path / "out").glob("*_predict.json")
    expected = submitted(submission)
    found = load_predictor(best, device="cpu", batch_size=5)(rows)
    assert [case.answer(row, each) for row, each in zip(rows, found, strict=True)] == expected
    answers = [(answer, each.get("start")) for answer, each in zip(expected, found, strict=True)]
    assert any(answer != answers[0] for answer in answers)

    lines(tmp_path / "in.jsonl", rows)
    predict(monkeypatch, "--load", best, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: value for key, value in row.items() if key != "prediction"} for row in written] == rows
    assert [case.answer(row, row["prediction"]) for row in written] == expected

    convert(monkeypatch, "to-hf", "--load", best, "--output", hub)  # compares the logits
    theirs = getattr(transformers, f"AutoModelFor{case.ending}").from_pretrained(hub)
    assert type(theirs).__name__ == f"MegatronBertFor{case.ending}"
    labels = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["labels"]
    if case.ending in ("SequenceClassification", "TokenClassification"):
        assert theirs.config.id2label == dict(enumerate(labels))
        assert theirs.config.label2id == {label: number for number, label in enumerate(labels)}
    again = load_predictor(hub, device="cpu", batch_size=5)(rows)
    assert [case.answer(row, each) for row, each in zip(rows, again, strict=True)] == expected
