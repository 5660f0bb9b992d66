"""The files of a run: found in the data folder, read and encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.errors import UserError
from megatron.tasks.config import TaskConfig
from megatron.tasks.encode import Encoded
from megatron.tasks.readers import find_file
from megatron.tasks.table import find_task
from megatron.tasks.task import Split, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The files a run reads. train is empty where nothing is trained, tests where nothing is predicted."""

    train: tuple[Path, ...]
    dev: tuple[Path, ...]
    tests: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One or more files, read and encoded as one. examples: as the task's reader gives them."""

    paths: tuple[Path, ...]
    examples: list[Any]
    encoded: Encoded

    def describe(self) -> str:
        """One line for the reader of the console."""
        inputs = self.encoded.num_inputs
        return (
            f"{', '.join(map(str, self.paths))}: {len(self.examples)} examples"
            + (f" in {inputs} inputs" if inputs != len(self.examples) else "")
            + f", {len(self.encoded.tokens) / inputs:.1f} tokens on average, {self.encoded.truncated} cut to fit"
        )


def find_files(config: TaskConfig, *, eval_only: bool) -> TaskFiles:
    """The files of a task in --data-dir. Raises `UserError` that names what was looked for and what is there."""
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    task = find_task(config.task)

    def find(kind: str, given: tuple[str, ...], official: Sequence[str]) -> tuple[Path, ...]:
        """All files of those given, or of the first of the official choices that is there."""
        for names in [given] if given else [choice.split() for choice in official]:
            found = [find_file(folder, name) for name in names]
            if all(found):
                return tuple(path for path in found if path is not None)
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        wanted = " and ".join(given) or " or ".join(choice.replace(" ", " and ") for choice in official)
        raise UserError(
            f"--data-dir {folder} holds no {wanted} (or .gz); there is {there}; --{kind}-file names another"
        )

    train = () if eval_only else find("train", config.train_file, task.train_files)
    dev = find("dev", config.dev_file, task.dev_files)
    tests: tuple[Path, ...] = ()
    if config.predict:
        official = [name for name, _ in task.test_files]
        given = () if config.test_file is None else (config.test_file,)
        found = [] if given else [find_file(folder, name) for name in official]
        tests = tuple(path for path in found if path is not None) or find("test", given, official)
    return TaskFiles(train=train, dev=dev, tests=tests)


def open_task(config: TaskConfig, files: TaskFiles, saved: dict[str, Any] | None) -> Task:
    """The task, completed from a user's own files where it is one of such.

    saved: the description in a fine-tuned checkpoint that is to be evaluated.

    Raises `UserError` if the checkpoint was fine-tuned for something else, and for wrong columns and labels.
    """
    task = find_task(config.task)
    if saved is not None and saved["name"] != task.name:
        raise UserError(f"--task {config.task}: the checkpoint was fine-tuned on {saved['name']}")
    if task.complete is None:
        return task
    if saved is not None:
        if config.labels and list(config.labels) != saved["labels"]:
            raise UserError(f"--labels {' '.join(config.labels)}: the checkpoint's are {' '.join(saved['labels'])}")
        known = config.text_columns or tuple(saved.get("text_columns", ()))
        config = dataclasses.replace(config, labels=tuple(saved["labels"]), text_columns=known)
    return task.complete(task, (files.train or files.dev)[0], config)


def read_examples(task: Task, path: Path, split: Split) -> list[Any]:
    """The examples of a file. Raises `UserError` naming file and line of what is wrong, and where there are none."""
    examples = task.read(task, path, split)
    if not examples:
        raise UserError(f"{path} holds no examples of {task.name}")
    return examples


def read_inputs(
    task: Task, paths: tuple[Path, ...], split: Split, tokenizer: Tokenizer, seq_length: int
) -> Inputs:
    """Read and encode files. Raises `UserError` naming file and line of what is wrong."""
    examples = [example for path in paths for example in read_examples(task, path, split)]
    return Inputs(paths=paths, examples=examples, encoded=task.kind.encode(task, examples, tokenizer, seq_length))


def description(task: Task, seq_length: int) -> dict[str, Any]:
    """What a fine-tuned checkpoint says about its task: all that `described_task` needs to predict."""
    return {
        "name": task.name,
        "head": task.kind.name,
        "labels": list(task.labels),
        "text_columns": list(task.text_columns),
        "seq_length": seq_length,
    }


def described_task(saved: dict[str, Any], where: Path) -> tuple[Task, int]:
    """The task of a description and the tokens of its longest input. where: the file it stands in, for messages.

    Raises `UserError` if it is damaged, or of a task that is none of ours.
    """

    def strings(name: str) -> tuple[str, ...]:
        values = saved.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UserError(f"{where}: {name} of the task must be a list of strings")
        return tuple(values)

    name, seq_length = saved.get("name"), saved.get("seq_length")
    if not isinstance(name, str) or not isinstance(seq_length, int) or seq_length < 8:
        raise UserError(f"{where}: the task lacks its name or its seq_length")
    try:
        task = find_task(name)
    except UserError:
        raise UserError(f"{where}: the task {name!r} is unknown here") from None
    if saved.get("head") != task.kind.name:
        raise UserError(f"{where}: the task {name} has a head for {task.kind.name}, not for {saved.get('head')!r}")
    if task.complete is None:
        return task, seq_length
    return dataclasses.replace(task, labels=strings("labels"), text_columns=strings("text_columns")), seq_length
