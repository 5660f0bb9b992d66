"""Result files: CLUE submissions and JSON, which appear only when complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    lines = [
        json.dumps({"id": example.id, "label": prediction.label}, ensure_ascii=False, separators=(",", ":"))
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return "".join(line + "\n" for line in lines)


def json_object(values: dict[str, Any]) -> str:
    """Values as one line of JSON, in their order."""
    return json.dumps(values, ensure_ascii=False) + "\n"


def json_text(values: dict[str, Any]) -> str:
    """Values as readable JSON."""
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
