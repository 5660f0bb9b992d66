"""What a finished run leaves for its reader: a confusion matrix, the examples that it got wrong, one summary."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron import __version__
from megatron.config import to_dict
from megatron.mpu.context import ParallelContext
from megatron.tasks.kinds.classification import Classified, TextExample, classes
from megatron.tasks.loop import BEST, Trained
from megatron.tasks.run import Run
from megatron.tasks.task import Task
from megatron.training.model import num_parameters

CONFUSION, ERRORS, SUMMARY = "confusion.tsv", "errors.jsonl", "summary.json"


def confusion_table(labels: Sequence[str], gold: np.ndarray, found: np.ndarray) -> str:
    """A table with a row for each label of the file and a column for each predicted one; numbers of examples.

    gold, found: int [n], indices of `labels`.
    """
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (gold, found), 1)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["gold \\ predicted", *labels])
    table.writerows([label, *row] for label, row in zip(labels, counts.tolist(), strict=True))
    return text.getvalue()


def error_reports(task: Task, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, str]:
    """The texts of the reports of a dev file by file name: of classification the confusion matrix, too."""
    if not (isinstance(examples[0], TextExample) and isinstance(predictions[0], Classified)):
        return {ERRORS: _lines(_wrong(task, examples, predictions))}
    found, gold = classes(task, examples, predictions)
    errors = [
        {
            "id": example.id,
            "text": example.texts[0] if len(example.texts) == 1 else list(example.texts),
            "gold": task.labels[example.label],
            "prediction": prediction.label,
            "probability": prediction.probabilities[number],
            "gold_probability": prediction.probabilities[example.label],
        }
        for example, prediction, number in zip(examples, predictions, found.tolist(), strict=True)
        if number != example.label
    ]
    return {CONFUSION: confusion_table(task.labels, gold, found), ERRORS: _lines(errors)}


def _wrong(task: Task, examples: Sequence[Any], predictions: Sequence[Any]) -> list[dict[str, Any]]:
    """Examples, whatever they are, that score less than 1 alone, with their predictions."""
    found = []
    for example, prediction in zip(examples, predictions, strict=True):
        name, score = next(iter(task.scores(task, [example], [prediction]).items()))
        nothing_to_find = prediction == () == getattr(example, "entities", None)  # whose F1 is 0 by convention
        if score < 1 and not nothing_to_find:
            found.append({**dataclasses.asdict(example), "prediction": prediction, name: score})
    return found


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """What JSON has for dataclasses, arrays and numbers of numpy, and sets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else sorted(value)


def summary(run: Run, trained: Trained | None, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """All that a table of runs needs of one. Collective.

    trained: None where nothing was trained; found: the dev scores of the weights that were kept; seconds: of the whole
    run, with reading and evaluation.
    """
    config, context = run.config, run.context
    best = None if trained is None else str(run.output / BEST / f"iter_{trained.best['step']:07d}")
    return {
        "task": run.task.name,
        "kind": run.task.kind.name,
        "labels": list(run.task.labels),
        "pretrained_checkpoint": config.source.pretrained_checkpoint,
        "from_scratch": config.source.from_scratch,
        "checkpoint": best or config.source.pretrained_checkpoint,
        "hyperparameters": {**to_dict(config.tuning), **to_dict(run.hyper)},
        "precision": config.precision.dtype,
        "best": found,
        "last": found if trained is None else trained.last,
        "steps": 0 if trained is None else trained.steps,
        "planned_steps": 0 if trained is None else trained.planned_steps,
        "seconds": seconds,
        "training_seconds": 0.0 if trained is None else trained.seconds,
        "samples_per_second": 0.0 if trained is None else trained.samples / trained.seconds,
        "parameters": _parameters(run),
        "layout": {**to_dict(context.layout), "processes": context.layout.world_size, "device": context.device.type},
        "versions": {"megatron": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _parameters(run: Run) -> int:
    """Parameters of the whole model."""
    context: ParallelContext = run.context
    return sum(context.pipeline.gather_objects(num_parameters(run.model.chunks, context)))
