"""Tasks whose examples are one or two texts with a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, TaskBatch, encode_texts
from megatron.tasks.metrics import accuracies, binary_f1, softmax
from megatron.tasks.readers import Row, read_rows, shortened, texts_to_predict
from megatron.tasks.submission import label_lines
from megatron.tasks.task import Kind, Split, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer
    from megatron.tasks.config import TaskConfig


@dataclass(frozen=True, slots=True)
class TextExample:
    """One or two texts, their class (None in test files), and the id in the file or the number of the row.

    group: the part of the dev rows that it belongs to, where parts are scored, too.
    """

    texts: tuple[str, ...]
    label: int | None
    id: int | str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Classified:
    """The label that is likeliest, and the probability of each label of the task."""

    label: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Columns:
    """Each key's text is a segment."""

    keys: tuple[str, ...]

    def __call__(self, row: Row) -> tuple[str, ...]:
        return tuple(row.text(key) for key in self.keys)


def columns(*keys: str) -> Columns:
    """Each key's text is a segment."""
    return Columns(keys)


def text_parser(texts: Callable[[Row], tuple[str, ...]]) -> Callable[[Task, Row], TextExample]:
    """A parser of rows to predict. texts: builds the segments; `Columns` are those of the task, once it knows them."""

    def parse(task: Task, row: Row) -> TextExample:
        names = task.text_columns
        if names and ("texts" in row.values or isinstance(texts, Columns)):
            given = texts_to_predict(row, names, task.name)
        elif "texts" not in row.values:
            given = texts(row)
        else:
            given = tuple(row.texts("texts"))
            if len(given) not in (1, 2):
                raise row.error(f"{len(given)} texts, but {task.name} takes 1 or 2")
        return TextExample(given, None, row.line)

    return parse


def rows_of_any_file(path: Path, split: Split) -> Iterator[Row]:
    """The rows of a file, read by its ending."""
    del split
    return read_rows(path)


def text_reader(
    texts: Callable[[Row], tuple[str, ...]],
    *,
    label_key: str = "label",
    skipped_labels: frozenset[str] = frozenset(),
    test_ids: bool = True,
    rows: Callable[[Path, Split], Iterator[Row]] = rows_of_any_file,
    group: Callable[[Path], str] = lambda path: "",
) -> Callable[[Task, Path, Split], list[TextExample]]:
    """A reader of rows. texts: builds the segments. test_ids: every row of a test file must have an `id`.

    In train and dev files every row needs a label of the task; rows with one of `skipped_labels` (annotators did not
    agree) are left out. In test files a label is not looked at and no row is left out.
    """

    def read(task: Task, path: Path, split: Split) -> list[TextExample]:
        index = {label: number for number, label in enumerate(task.labels)}
        examples: list[TextExample] = []
        for number, row in enumerate(rows(path, split)):
            label: int | None = None
            if split != "test":
                name = str(row.code(label_key))
                if name in skipped_labels:
                    continue
                if name not in index:
                    raise row.error(
                        f"label {name!r} is none of the {len(index)} of {task.name}: {shortened(task.labels)}"
                    )
                label = index[name]
            has_id = split == "test" and (test_ids or "id" in row.values)
            examples.append(TextExample(texts(row), label, row.code("id") if has_id else number, group(path)))
        return examples

    return read


def own_columns(task: Task, file: Path, config: TaskConfig) -> Task:
    """The task with the columns and labels of a user's own files.

    file: the training file, or the dev file where nothing is trained. Text columns default to all but the label's and
    `id`, labels to the distinct ones of the file, sorted. Raises `UserError` for missing columns, more than two texts,
    and a column or label that is named twice.
    """
    rows = read_rows(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} holds no rows")
    label_column, labels = config.label_column, config.labels
    if label_column not in first.values:
        raise first.error(f"no column {label_column!r} in {list(first.values)}; name it with --label-column")
    texts = config.text_columns or tuple(name for name in first.values if name not in (label_column, "id"))
    missing = [name for name in texts if name not in first.values]
    if missing or len(texts) not in (1, 2) or len({*texts, label_column}) <= len(texts):
        problem = f"the text columns are {list(texts)}, the label's is {label_column!r}"
        if missing:
            problem = f"no column {missing[0]!r} in {list(first.values)}"
        raise first.error(f"{problem}; name the one or two columns of text with --text-columns")
    if not labels:
        labels = tuple(sorted({str(row.code(label_column)) for row in (first, *rows)}))
    if len(labels) < 2:
        raise UserError(f"{file} has only the label {labels[0]!r}: at least two are needed (--labels names them all)")
    if len(set(labels)) < len(labels):
        raise UserError(f"{file}: the labels {', '.join(labels)} are not all different; mend --labels")
    read = text_reader(columns(*texts), label_key=label_column, test_ids=False)
    return dataclasses.replace(task, read=read, labels=labels, text_columns=texts)


def accuracy_scores(
    task: Task, examples: Sequence[TextExample], predictions: Sequence[Classified]
) -> dict[str, float]:
    """Accuracy, of groups too, and what always answering the commonest label would score."""
    found, labels = classes(task, examples, predictions)
    return accuracies(found, labels, [example.group for example in examples])


def f1_scores(task: Task, examples: Sequence[TextExample], predictions: Sequence[Classified]) -> dict[str, float]:
    """Accuracy, and F1 of the second of two labels."""
    found, labels = classes(task, examples, predictions)
    return {**accuracies(found, labels, [example.group for example in examples]), "f1": binary_f1(found, labels)}


def classes(
    task: Task, examples: Sequence[TextExample], predictions: Sequence[Classified]
) -> tuple[np.ndarray, np.ndarray]:
    """Classes predicted and true, int64 [examples] each."""
    index = {label: number for number, label in enumerate(task.labels)}
    found = np.array([index[prediction.label] for prediction in predictions])
    return found, np.array([example.label for example in examples])


def _encode(task: Task, examples: Sequence[TextExample], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    return encode_texts(
        [example.texts for example in examples],
        [IGNORED if example.label is None else example.label for example in examples],
        tokenizer,
        seq_length=seq_length,
        truncate=task.truncate,
    )


def label_loss(task: Task, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labels of rows: outputs [rows, classes]."""
    labels = torch.from_numpy(batch.labels).to(outputs.device)
    total = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum", ignore_index=IGNORED)
    return total, (outputs.argmax(1) == labels).sum()


def likeliest(
    task: Task, examples: Sequence[TextExample], encoded: Encoded, outputs: np.ndarray
) -> list[Classified]:
    """The likeliest label of each row: outputs [rows, classes]."""
    del examples, encoded
    return [
        Classified(task.labels[row.argmax()], tuple(probabilities.tolist()))
        for row, probabilities in zip(outputs, softmax(outputs), strict=True)
    ]


def label_and_probabilities(task: Task, example: TextExample, prediction: Classified) -> dict[str, Any]:
    """A prediction for files: its label, and the probability of each."""
    del example
    return {
        "label": prediction.label,
        "probabilities": dict(zip(task.labels, prediction.probabilities, strict=True)),
    }


CLASSIFICATION: Kind[TextExample, Classified] = Kind(
    name="classification",
    head="sequence",
    num_outputs=lambda task: len(task.labels),
    encode=_encode,
    loss=label_loss,
    decode=likeliest,
    as_json=label_and_probabilities,
)


def text_task(
    *,
    texts: Callable[[Row], tuple[str, ...]],
    label_key: str = "label",
    skipped_labels: frozenset[str] = frozenset(),
    test_ids: bool = True,
    rows: Callable[[Path, Split], Iterator[Row]] = rows_of_any_file,
    group: Callable[[Path], str] = lambda path: "",
    text_columns: tuple[str, ...] = (),
    **rest: Any,
) -> Task:
    """A task of one or two texts with a label, read as `text_reader` says and scored by accuracy.

    text_columns: names of the texts where they are not columns. rest: other fields of `Task`, also in place of these.
    """
    read = text_reader(
        texts, label_key=label_key, skipped_labels=skipped_labels, test_ids=test_ids, rows=rows, group=group
    )
    return Task(
        **{
            "kind": CLASSIFICATION,
            "read": read,
            "scores": accuracy_scores,
            "submission": label_lines,
            "parse": text_parser(texts),
            "text_columns": texts.keys if isinstance(texts, Columns) else text_columns,
            **rest,
        }
    )
