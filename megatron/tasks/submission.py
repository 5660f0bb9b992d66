"""Result files: the names CLUE wants for them, and the lines of JSON they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.tasks.kinds.classification import Classified, TextExample
    from megatron.tasks.task import Task


def submission_name(task: Task, test_file: Path) -> str:
    """The name CLUE wants for the predictions of a test file; for a file of another name one that tells it apart."""
    name = test_file.name.removesuffix(".gz")
    stem = name.rsplit(".", 1)[0]
    return dict(task.test_files).get(name, f"{task.name}_{stem}_predict.json")


def label_lines(examples: Sequence[TextExample], predictions: Sequence[Classified]) -> str:
    """One line `{"id":0,"label":"102"}` a row, in the order of the test file; ids and labels as in the task's files."""
    pairs = zip(examples, predictions, strict=True)
    return json_lines({"id": example.id, "label": prediction.label} for example, prediction in pairs)


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """A line of JSON without spaces a row."""
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


def json_object(values: dict[str, Any]) -> str:
    """Values as one line of JSON, in their order."""
    return json.dumps(values, ensure_ascii=False) + "\n"


def json_text(values: dict[str, Any]) -> str:
    """Values as readable JSON."""
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
