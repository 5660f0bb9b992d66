"""What a fine-tuned checkpoint says about its task, and the task as it says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from megatron.config import to_dict
from megatron.errors import UserError
from megatron.tasks.kinds.prompts import prompt_description, with_prompt
from megatron.tasks.table import find_task
from megatron.tasks.task import Task


def description(task: Task, seq_length: int) -> dict[str, Any]:
    """What a fine-tuned checkpoint says about its task: all that `described_task` needs to predict."""
    found = {
        "name": task.name,
        "head": task.kind.name,
        "labels": list(task.labels),
        "text_columns": list(task.text_columns),
        "seq_length": seq_length,
    }
    if task.reading is not None:
        found["reading"] = to_dict(task.reading)
    if task.kind.head == "masked":
        found["prompt"] = prompt_description(task)
    return found


def _as_saved(task: Task, saved: dict[str, Any]) -> Task:
    """The task with the options of reading and the prompt of a description, as far as it has them.

    Raises an error that is no `UserError` where they are not such options or not such a prompt.
    """
    if task.reading is not None:
        given = {name: value for name, value in saved.get("reading", {}).items() if hasattr(task.reading, name)}
        for name, value in given.items():
            if type(value) is not type(getattr(task.reading, name)) or (type(value) is int and value < 1):
                raise ValueError(f"{name} {value!r}")
        task = dataclasses.replace(task, reading=dataclasses.replace(task.reading, **given))
    if "prompt" not in saved:
        return task
    prompted, own = with_prompt(task, saved["prompt"]), task.prompt
    found = prompted.prompt
    assert own is not None and found is not None
    places = [set(re.findall(r"\{[01]\}", pattern)) for pattern in (own.pattern, found.pattern)]
    if places[0] != places[1] or len(own.words) != len(found.words) or "[MASK]" not in found.pattern:
        raise ValueError(f"pattern {found.pattern!r} with {len(found.words)} words")
    return prompted


def described_task(saved: Any, where: Path) -> tuple[Task, int]:
    """The task of a description and the tokens of its longest input. where: the file it stands in, for messages.

    Raises `UserError` if it is damaged, or of a task that is none of ours.
    """

    if not isinstance(saved, dict):
        raise UserError(f"{where}: the task must be an object")

    def strings(name: str) -> tuple[str, ...]:
        values = saved.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UserError(f"{where}: {name} of the task must be a list of strings")
        return tuple(values)

    name, seq_length = saved.get("name"), saved.get("seq_length")
    if not isinstance(name, str) or type(seq_length) is not int or seq_length < 8:
        raise UserError(f"{where}: the task lacks its name or its seq_length")
    try:
        task = find_task(name)
    except UserError:
        raise UserError(f"{where}: the task {name!r} is unknown here") from None
    try:
        task = _as_saved(task, saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the reading or the prompt of the task is damaged ({error})") from None
    if saved.get("head") != task.kind.name:
        raise UserError(f"{where}: the task {name} has a head for {task.kind.name}, not for {saved.get('head')!r}")
    if task.complete is None:
        return task, seq_length
    return dataclasses.replace(task, labels=strings("labels"), text_columns=strings("text_columns")), seq_length
