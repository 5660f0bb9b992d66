"""The tasks, declared. A new task is one entry here and one test with rows in its official form.

Files, keys, labels and submission names are those of CLUE (https://github.com/CLUEbenchmark/CLUE); hyper-parameters
are the best of PaddleNLP's published grid for BERT-base-sized models.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from megatron.errors import UserError
from megatron.tasks.metrics import accuracy
from megatron.tasks.readers import Row, read_rows


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a fine-tuning run takes where no flag says otherwise."""

    epochs: int = 3
    global_batch_size: int = 16
    lr: float = 5e-5
    lr_warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    seq_length: int = 128
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as a value.

    texts: builds the one or two segments of the input from a row. labels: as written in the files; the index of a
    label is its class. truncate: which segment loses tokens at its end when an input is too long: the longest, or
    only the second. test_files: names of test files and of the submission files that belong to them.
    """

    name: str
    texts: Callable[[Row], tuple[str, ...]]
    labels: tuple[str, ...]
    head: Literal["classification"] = "classification"
    metric: Callable[[np.ndarray, np.ndarray], float] = accuracy
    truncate: Literal["longest", "second"] = "longest"
    label_key: str = "label"
    skipped_labels: frozenset[str] = frozenset()
    train_files: tuple[str, ...] = ("train.json",)
    dev_files: tuple[str, ...] = ("dev.json",)
    test_files: tuple[tuple[str, str], ...] = ()
    test_ids: bool = True
    defaults: Hyperparameters = field(default_factory=Hyperparameters)


def columns(*keys: str) -> Callable[[Row], tuple[str, ...]]:
    """Input builder: each key's text is a segment."""
    return lambda row: tuple(row.text(key) for key in keys)


def keywords_and_abstract(row: Row) -> tuple[str, ...]:
    """Input builder of CSL: the keywords joined by a space, then the abstract."""
    return " ".join(row.texts("keyword")), row.text("abst")


def marked_pronoun(row: Row) -> tuple[str, ...]:
    """Input builder of CLUEWSC2020: the text with `_` around the noun and `[ ]` around the pronoun.

    Indices count code points. The later mark goes in first, so that it does not move the earlier index; the pronoun
    may stand before the noun (it does in some rows of test 1.1).
    """
    text, target = row.text("text"), row.value("target")
    if not isinstance(target, dict):
        raise row.error("'target' must be an object")
    spans = Row(row.path, row.line, target)
    marks = []
    for number, left, right in ((1, "_", "_"), (2, "[", "]")):
        span, start = spans.text(f"span{number}_text"), spans.value(f"span{number}_index")
        if not isinstance(start, int) or start < 0 or text[start : start + len(span)] != span:
            raise row.error(f"span{number}_text {span!r} does not stand at span{number}_index {start!r} of the text")
        marks.append((start, left + span + right, len(span)))
    for start, marked, length in sorted(marks, reverse=True):
        text = text[:start] + marked + text[start + length :]
    return (text,)


def find_task(name: str) -> Task:
    """The task of a name, upper or lower case. Raises `UserError` that lists the tasks and names the nearest."""
    tasks = {task.name: task for task in TASKS}
    if name.lower() in tasks:
        return tasks[name.lower()]
    near = difflib.get_close_matches(name.lower(), tasks, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"--task {name}: unknown task{hint}; the tasks are {', '.join(tasks)}")


def classification_task(
    file: Path, *, text_columns: tuple[str, ...], label_column: str, labels: tuple[str, ...]
) -> Task:
    """The task GENERIC with the columns and labels of a user's own files.

    file: the training file, or the dev file where nothing is trained. text_columns: default all columns but the
    label's and `id`. labels: default the distinct ones of the file, sorted.
    Raises `UserError` for missing columns, and for more than two texts.
    """
    rows = read_rows(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} holds no rows")
    if label_column not in first.values:
        raise first.error(f"no column {label_column!r} in {list(first.values)}; name it with --label-column")
    texts = text_columns or tuple(name for name in first.values if name not in (label_column, "id"))
    missing = [name for name in texts if name not in first.values]
    if missing or len(texts) not in (1, 2):
        problem = (
            f"no column {missing[0]!r} in {list(first.values)}" if missing else f"the text columns are {list(texts)}"
        )
        raise first.error(f"{problem}; name the one or two columns of text with --text-columns")
    if not labels:
        labels = tuple(sorted({str(row.code(label_column)) for row in (first, *rows)}))
    if len(labels) < 2:
        raise UserError(f"{file} has only the label {labels[0]!r}: at least two are needed (--labels names them all)")
    return dataclasses.replace(GENERIC, texts=columns(*texts), labels=labels, label_key=label_column)


_ENDINGS = ("tsv", "csv", "jsonl", "json")

# Classification of one or two texts in a user's own files, which say what the columns and the labels are.
GENERIC = Task(
    name="classification",
    texts=columns("text"),
    labels=(),
    train_files=tuple(f"train.{ending}" for ending in _ENDINGS),
    dev_files=tuple(f"dev.{ending}" for ending in _ENDINGS),
    test_files=tuple((f"test.{ending}", "classification_predict.json") for ending in _ENDINGS),
    test_ids=False,
    defaults=Hyperparameters(global_batch_size=32),
)

_NLI = ("contradiction", "entailment", "neutral")

TASKS = (
    Task(
        name="afqmc",
        texts=columns("sentence1", "sentence2"),
        labels=("0", "1"),
        test_files=(("test.json", "afqmc_predict.json"),),
        defaults=Hyperparameters(lr=2e-5),
    ),
    Task(
        name="tnews",
        texts=columns("sentence"),
        # 105 and 111 do not exist
        labels=tuple(str(code) for code in range(100, 117) if code not in (105, 111)),
        test_files=(("test.json", "tnews11_predict.json"), ("test1.0.json", "tnews10_predict.json")),
    ),
    Task(
        name="iflytek",
        texts=columns("sentence"),
        labels=tuple(str(code) for code in range(119)),
        test_files=(("test.json", "iflytek_predict.json"),),
    ),
    Task(
        name="cmnli",
        texts=columns("sentence1", "sentence2"),
        labels=_NLI,
        skipped_labels=frozenset("-"),
        test_files=(("test.json", "cmnli_predict.json"),),
        defaults=Hyperparameters(epochs=2, global_batch_size=64),
    ),
    Task(
        name="ocnli",
        texts=columns("sentence1", "sentence2"),
        labels=_NLI,
        skipped_labels=frozenset("-"),
        train_files=("train.50k.json", "train.json", "train.30k.json", "train.10k.json", "train.3k.json"),
        test_files=(("test.json", "ocnli_50k_predict.json"),),
        defaults=Hyperparameters(epochs=5, lr=3e-5),
    ),
    Task(
        name="cluewsc2020",
        texts=marked_pronoun,
        labels=("true", "false"),
        test_files=(("test.json", "cluewsc11_predict.json"), ("test1.0.json", "cluewsc10_predict.json")),
        defaults=Hyperparameters(epochs=50, lr=3e-5),
    ),
    Task(
        name="csl",
        texts=keywords_and_abstract,
        labels=("0", "1"),
        truncate="second",
        test_files=(("test.json", "csl_predict.json"),),
        defaults=Hyperparameters(epochs=5, lr=1e-5, seq_length=256),
    ),
    GENERIC,
)
