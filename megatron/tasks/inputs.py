"""The files of a run: found in the data folder, read and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron.errors import UserError
from megatron.tasks.config import TaskConfig
from megatron.tasks.encode import Encoded, encode
from megatron.tasks.readers import Example, find_file, read_examples
from megatron.tasks.table import GENERIC, Task, classification_task, find_task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The files a run reads. train is None where nothing is trained, tests are empty where nothing is predicted."""

    train: Path | None
    dev: Path
    tests: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A file, read and encoded."""

    path: Path
    examples: list[Example]
    encoded: Encoded

    def describe(self) -> str:
        """One line for the reader of the console."""
        lengths = self.encoded.lengths
        return (
            f"{self.path}: {len(lengths)} examples, {lengths.mean():.1f} tokens on average, "
            f"{self.encoded.truncated} cut to fit"
        )


def find_files(config: TaskConfig, *, eval_only: bool) -> TaskFiles:
    """The files of a task in --data-dir. Raises `UserError` that names what was looked for and what is there."""
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    task = find_task(config.task)

    def one(kind: str, given: str | None, official: Sequence[str]) -> Path:
        found = find_file(folder, (given,) if given else official)
        if found is None:
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
            wanted = given or " or ".join(official)
            raise UserError(
                f"--data-dir {folder} holds no {wanted} (or .gz); there is {there}; --{kind}-file names another"
            )
        return found

    train = None if eval_only else one("train", config.train_file, task.train_files)
    dev = one("dev", config.dev_file, task.dev_files)
    tests: tuple[Path, ...] = ()
    if config.predict:
        official = [name for name, _ in task.test_files]
        found = [find_file(folder, (name,)) for name in official] if config.test_file is None else []
        tests = tuple(path for path in found if path is not None) or (one("test", config.test_file, official),)
    return TaskFiles(train=train, dev=dev, tests=tests)


def open_task(config: TaskConfig, files: TaskFiles, saved: dict[str, Any] | None) -> Task:
    """The task with its labels. saved: the description in a fine-tuned checkpoint that is to be evaluated.

    Raises `UserError` if the checkpoint was fine-tuned for something else, and for wrong columns and labels.
    """
    task = find_task(config.task)
    if saved is not None and saved["name"] != task.name:
        raise UserError(f"--task {config.task}: the checkpoint was fine-tuned on {saved['name']}")
    if task.name != GENERIC.name:
        return task
    labels = config.labels
    if saved is not None:
        if labels and list(labels) != saved["labels"]:
            raise UserError(f"--labels {' '.join(labels)}: the checkpoint's are {' '.join(saved['labels'])}")
        labels = tuple(saved["labels"])
    first = files.train or files.dev
    return classification_task(first, text_columns=config.text_columns, label_column=config.label_column, labels=labels)


def read_inputs(
    task: Task, path: Path, split: Literal["train", "dev", "test"], tokenizer: Tokenizer, seq_length: int
) -> Inputs:
    """Read and encode a file. Raises `UserError` naming file and line of what is wrong."""
    examples = read_examples(task, path, split)
    encoded = encode(examples, tokenizer, seq_length=seq_length, truncate=task.truncate)
    return Inputs(path=path, examples=examples, encoded=encoded)


def description(task: Task, seq_length: int) -> dict[str, Any]:
    """What a fine-tuned checkpoint says about its task."""
    return {"name": task.name, "head": task.head, "labels": list(task.labels), "seq_length": seq_length}
