"""The files of a run: found in the data folder, read and encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.errors import UserError
from megatron.tasks.config import ReadingConfig, TaskConfig
from megatron.tasks.encode import Encoded
from megatron.tasks.kinds.prompts import with_prompt
from megatron.tasks.readers import find_file
from megatron.tasks.table import find_task
from megatron.tasks.task import Split, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The files a run reads. train is empty where nothing is trained, tests where nothing is predicted.

    scored: test files with labels.
    """

    train: tuple[Path, ...]
    dev: tuple[Path, ...]
    scored: tuple[Path, ...]
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
            + "".join(f", {note}" for note in self.encoded.notes)
        )


def find_files(config: TaskConfig, *, trained: bool) -> TaskFiles:
    """The files of a task in --data-dir; trained: whether by this run.

    Raises `UserError` that names what was looked for and what is there.
    """
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    task = named_task(config)
    if config.split is not None and task.train_files != ("train_0.json",):
        raise UserError(f"--split is for FewCLUE, whose files come in several; {task.name} has no splits")

    def find(kind: str, given: tuple[str, ...], official: Sequence[str]) -> tuple[Path, ...]:
        """All files of those given, or of the first of the official choices that is there."""
        for names in [given] if given else [choice.split() for choice in official]:
            found = [find_file(folder, name) or (find_file(Path(), name) if given else None) for name in names]
            if all(found):
                return tuple(path for path in found if path is not None)
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        wanted = " and ".join(given) or " or ".join(choice.replace(" ", " and ") for choice in official)
        raise UserError(
            f"--data-dir {folder} holds no {wanted} (or .gz); there is {there}; --{kind}-file names another"
        )

    def named(kind: str, given: tuple[str, ...]) -> tuple[str, ...]:
        return given if config.split is None else (f"{kind}_{config.split}.json",)

    train = find("train", named("train", config.train_file), task.train_files) if trained else ()
    dev = find("dev", named("dev", config.dev_file), task.dev_files)
    scored = tuple(path for name in task.scored_files if (path := find_file(folder, name)))
    tests: tuple[Path, ...] = ()
    if config.predict:
        given = () if config.test_file is None else (config.test_file,)
        tests = () if given else official_tests(task, folder)
        tests = tests or find("test", given, [name for name, _ in task.test_files])
    return TaskFiles(train=train, dev=dev, scored=scored, tests=tests)


def official_tests(task: Task, folder: Path) -> tuple[Path, ...]:
    """The test files of a task that are in a folder; of two with the same result file the first."""
    by_result: dict[str, Path] = {}
    for name, result in task.test_files:
        if path := find_file(folder, name):
            by_result.setdefault(result, path)
    return tuple(by_result.values())


def named_task(config: TaskConfig) -> Task:
    """The task of --task and --version-2-with-negative."""
    return find_task("squad2" if config.version_2_with_negative else config.task)


def open_task(config: TaskConfig, files: TaskFiles, saved: Task | None) -> Task:
    """The task, by its prompt where the flags say so, completed from a user's own files where it is of such.

    saved: that of the fine-tuned checkpoint that is to be evaluated.

    Raises `UserError` if the checkpoint was fine-tuned for something else, and for wrong columns and labels.
    """
    task = named_task(config)
    if saved is not None:
        if saved.name != task.name:
            raise UserError(f"--task {config.task}: the checkpoint was fine-tuned on {saved.name}")
        if config.prompt and saved.kind.head != "masked":
            raise UserError("--prompt: the checkpoint was fine-tuned without")
        if config.labels and config.labels != saved.labels:
            raise UserError(f"--labels {' '.join(config.labels)}: the checkpoint's are {' '.join(saved.labels)}")
        columns = config.text_columns or saved.text_columns
        task, config = saved, dataclasses.replace(config, labels=saved.labels, text_columns=columns)
    elif config.prompt or config.zero_shot:
        task = with_prompt(task)
    return task if task.complete is None else task.complete(task, (files.train or files.dev)[0], config)


def with_reading(task: Task, config: ReadingConfig) -> Task:
    """The task with the options of reading that were given. Raises `UserError` for those that it does not have."""
    given = config.given()
    if not given:
        return task
    if task.reading is None:
        raise UserError(f"--{next(iter(given)).replace('_', '-')} is for reading comprehension, not {task.name}")
    if "null_score_diff_threshold" in given and not task.reading.version_2_with_negative:
        raise UserError(f"--null-score-diff-threshold is for squad2: every question of {task.name} has an answer")
    return dataclasses.replace(task, reading=dataclasses.replace(task.reading, **given))


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
