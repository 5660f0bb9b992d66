"""What a run leaves behind: checkpoints, the summary, and reports of errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron import __version__
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.kinds.classification import TextExample
from megatron.tasks.pretrained import open_pretrained
from megatron.tasks.reports import confusion_table, error_reports
from megatron.tasks.table import find_task
from tests.tasks.tiny import changed, metrics

SINGLE = ParallelContext.single()


def test_early_stopping_and_the_last_checkpoints(config: FinetuneConfig) -> None:
    """With a learning rate of next to nothing the first evaluation stays the best."""
    config = changed(config, "tuning", lr=1e-12, epochs=4, eval_interval=2, early_stopping=2, keep_last_checkpoints=4)
    output = Path(config.source.output_dir)
    finetune(config, SINGLE)
    assert [record["step"] for record in metrics(output) if record["split"] == "dev"] == [2, 4, 6]
    assert [path.name for path in (output / "best").glob("iter_*")] == ["iter_0000002"]
    assert sorted(path.name for path in (output / "last").glob("iter_*")) == [f"iter_000000{n}" for n in (2, 4, 6)]
    written = json.loads((output / "summary.json").read_text())
    assert (written["best"]["step"], written["last"]["step"]) == (2, 6)
    assert (written["steps"], written["planned_steps"]) == (6, 12)
    finetune(changed(config, "tuning", early_stopping=None, keep_last_checkpoints=2), SINGLE)
    assert sorted(path.name for path in (output / "last").glob("iter_*"))[-2:] == ["iter_0000010", "iter_0000012"]


def test_summary_appears_when_all_is_done(config: FinetuneConfig, tmp_path: Path) -> None:
    output = Path(config.source.output_dir)
    finetune(config, SINGLE)
    written = json.loads((output / "summary.json").read_text())
    dev = [{k: v for k, v in record.items() if k != "split"} for record in metrics(output) if record["split"] == "dev"]
    assert written["last"] == dev[-1]
    assert written["best"] == max(dev, key=lambda record: record["accuracy"])
    assert written["task"] == "classification" and written["labels"] == ["bad", "good"]
    assert written["hyperparameters"]["lr"] == 5e-3 and written["hyperparameters"]["attention_dropout"] == 0.1
    assert written["steps"] == written["planned_steps"] == 6
    assert 0 < written["training_seconds"] < written["seconds"]
    assert written["samples_per_second"] == pytest.approx(62 / written["training_seconds"])
    model = BertForTask(
        open_pretrained(Path(config.source.pretrained_checkpoint), tmp_path, SINGLE).model,
        SINGLE,
        num_outputs=2,
        dropout=0.0,
    )
    assert written["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert written["layout"] == {"pipeline": 1, "data": 1, "tensor": 1, "processes": 1, "device": "cpu"}
    assert written["versions"]["megatron"] == __version__
    again = changed(config, "source", pretrained_checkpoint=written["checkpoint"], eval_only=True)
    finetune(changed(again, "source", output_dir=str(tmp_path / "again")), SINGLE)
    evaluated = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert evaluated["best"]["loss"] == pytest.approx(written["best"]["loss"])
    assert evaluated["steps"] == 0

    (output / "errors.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot write"):  # a run that fails leaves no summary, nor an earlier run's
        finetune(changed(config, "tuning", error_report=True), SINGLE)
    assert not (output / "summary.json").exists()


def test_confusion_and_errors_of_classification(config: FinetuneConfig) -> None:
    from sklearn.metrics import confusion_matrix

    output = Path(config.source.output_dir)
    finetune(changed(config, "tuning", error_report=True, lr=1e-3, epochs=1), SINGLE)
    _, *lines = (Path(config.task.data_dir) / "dev.tsv").read_text(encoding="utf-8").splitlines()
    gold, texts = zip(*(line.split("\t") for line in lines), strict=True)
    errors = [json.loads(line) for line in (output / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    score = json.loads((output / "dev_metrics.json").read_text())["accuracy"]
    assert len(errors) == round((1 - score) * len(lines)) > 0
    found = list(gold)
    for error in errors:
        assert error["text"] == texts[error["id"]] and error["gold"] == gold[error["id"]] != error["prediction"]
        assert error["probability"] > 0.5 > error["gold_probability"]
        found[error["id"]] = error["prediction"]
    header, *rows = [line.split("\t") for line in (output / "confusion.tsv").read_text().splitlines()]
    assert header[1:] == [row[0] for row in rows] == ["bad", "good"]
    counts = [[int(cell) for cell in row[1:]] for row in rows]
    assert counts == confusion_matrix(gold, found, labels=["bad", "good"]).tolist()


def test_errors_of_other_kinds_are_examples_beside_predictions() -> None:
    """Whatever examples and predictions are: those that score less than 1 alone."""

    @dataclasses.dataclass(frozen=True)
    class Answer:
        text: str
        where: tuple[int, int]

    def scores(task: Any, examples: Any, predictions: Any) -> dict[str, float]:
        return {"exact": float(np.mean([e.texts[0] == p.text for e, p in zip(examples, predictions, strict=True)]))}

    task = dataclasses.replace(find_task("tnews"), scores=scores)
    examples = [TextExample(("甲",), None, 5), TextExample(("乙",), None, 6)]
    reports = error_reports(task, examples, [Answer("甲", (0, 1)), Answer("丙", (2, 3))])
    assert list(reports) == ["errors.jsonl"]
    assert json.loads(reports["errors.jsonl"]) == {
        "texts": ["乙"],
        "label": None,
        "id": 6,
        "group": "",
        "prediction": {"text": "丙", "where": [2, 3]},
        "exact": 0.0,
    }


def test_texts_without_entities_in_which_none_was_found_are_no_errors() -> None:
    @dataclasses.dataclass(frozen=True)
    class Tagged:
        text: str
        entities: tuple[tuple[int, int, str], ...]

    def scores(task: Any, examples: Any, predictions: Any) -> dict[str, float]:
        right = sum(len(set(e.entities) & set(p)) for e, p in zip(examples, predictions, strict=True))
        total = sum(len(e.entities) + len(p) for e, p in zip(examples, predictions, strict=True))
        return {"f1": 2 * right / total if total else 0.0}

    name = (0, 1, "name")
    examples = [Tagged("甲", ()), Tagged("乙", (name,)), Tagged("丙", (name,)), Tagged("丁", ())]
    task = dataclasses.replace(find_task("tnews"), scores=scores)
    reports = error_reports(task, examples, [(), (name,), (), (name,)])
    errors = [json.loads(line) for line in reports["errors.jsonl"].splitlines()]
    assert [(error["text"], error["prediction"]) for error in errors] == [("丙", []), ("丁", [[0, 1, "name"]])]


def test_labels_with_tabs_stay_cells() -> None:
    assert confusion_table(["a\tb", "c"], np.array([0, 1, 1]), np.array([0, 0, 1])).splitlines() == [
        'gold \\ predicted\t"a\tb"\tc',
        '"a\tb"\t1\t0',
        "c\t1\t1",
    ]


