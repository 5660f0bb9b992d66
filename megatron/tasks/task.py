"""What a task is: a value. How its examples go through a model is the value of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from megatron.tasks.encode import Encoded, TaskBatch

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer
    from megatron.tasks.config import TaskConfig
    from megatron.tasks.readers import Row

Split = Literal["train", "dev", "test"]
"""Examples of a test file have no labels."""
Example = TypeVar("Example")
Prediction = TypeVar("Prediction")


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Example, Prediction]):
    """How examples become inputs of a model, and its outputs predictions.

    head: what the model gives, fp32: "sequence", logits of an input [b, outputs]; "token", of every token
    [b, s, outputs]; "masked", scores of candidate words at [MASK] tokens, [b, candidates]. num_outputs: the width of
    the first two.
    encode(task, examples, tokenizer, seq_length).
    loss(task, outputs, batch): the sum of the losses (nats) of a batch, and how many of its labels were hit.
    decode(task, examples, encoded, outputs): a prediction for each example; outputs [inputs, ...] of "sequence" and
    "masked", [tokens, num_outputs] of "token", in the order of `encoded`.
    as_json(task, example, prediction): a prediction for files and users of Python [default: its fields].
    """

    name: str
    head: Literal["sequence", "token", "masked"]
    num_outputs: Callable[[Task], int]
    encode: Callable[[Task, Sequence[Example], Tokenizer, int], Encoded]
    loss: Callable[[Task, Tensor, TaskBatch], tuple[Tensor, Tensor]]
    decode: Callable[[Task, Sequence[Example], Encoded, np.ndarray], list[Prediction]]
    as_json: Callable[[Task, Example, Prediction], dict[str, Any]] = lambda task, example, prediction: (
        dataclasses.asdict(prediction)  # type: ignore[call-overload]
    )


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
class Reading:
    """How answers are looked for in contexts, in tokens. Names are those of BERT's `run_squad.py`.

    doc_stride: from the start of a window over a long context to the start of the next. max_query_length: questions
    are cut to it. n_best_size: first and last tokens that are tried in a window, and spans that are kept.
    version_2_with_negative: questions may have no answer; they are held to have none where that scores more than
    null_score_diff_threshold above the best span.
    """

    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 50
    n_best_size: int = 20
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How the examples of a task are put as texts with blanks, and what each label puts there.

    After PET (Schick and Schütze, 2021, https://arxiv.org/abs/2001.07676).
    pattern: {0} and {1} stand for the texts of an example, [MASK] for a blank of one token. words: that of each label,
    with as many tokens as there are blanks; none where every example brings its own candidates. read, parse: in place
    of the task's, where the pattern wants other texts. defaults: in place of the task's.
    """

    pattern: str
    words: tuple[str, ...] = ()
    read: Callable[[Task, Path, Split], list[Any]] | None = None
    parse: Callable[[Task, Row], Any] | None = None
    defaults: Hyperparameters = field(default_factory=Hyperparameters)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as a value.

    labels: as written in the files; the index of a label is its class.
    read(task, path, split): the examples of a file, in its order; `UserError` names file and line of what is wrong.
    scores(task, examples, predictions): the metrics in [0, 1]; the first is the one that the best checkpoint has most
    of. submission(examples, predictions): the text of a result file.
    parse(task, row): the example, without label, of a row to predict: one with the keys of the task's files, of nested
    ones those of a single question, or only "texts", a list of the texts of `text_columns`; `UserError` says what is
    wrong.
    text_columns: the keys of those texts in rows, where it is known; none of forms that are more than texts.
    truncate: which segment loses tokens at its end when an input is too long: the longest, or only the second.
    train_files, dev_files: names in order of preference; several in one string, with spaces, are read one after the
    other. test_files: names of test files and of the submission files that belong to them, in order of preference where
    these are the same. scored_files: names of test files with labels, scored in the end where they are there.
    prompt: how the task is done by filling blanks, where it can be.
    complete(task, path, config): the task as a user's own first file and flags say, for a task of such files.
    reading: of tasks whose answers are spans of a context.
    """

    name: str
    kind: Kind[Any, Any]
    labels: tuple[str, ...]
    read: Callable[[Task, Path, Split], list[Any]]
    scores: Callable[[Task, Sequence[Any], Sequence[Any]], dict[str, float]]
    submission: Callable[[Sequence[Any], Sequence[Any]], str]
    parse: Callable[[Task, Row], Any]
    text_columns: tuple[str, ...] = ()
    truncate: Literal["longest", "second"] = "longest"
    train_files: tuple[str, ...] = ("train.json",)
    dev_files: tuple[str, ...] = ("dev.json",)
    test_files: tuple[tuple[str, str], ...] = ()
    scored_files: tuple[str, ...] = ()
    prompt: Prompt | None = None
    complete: Callable[[Task, Path, TaskConfig], Task] | None = None
    reading: Reading | None = None
    defaults: Hyperparameters = field(default_factory=Hyperparameters)
