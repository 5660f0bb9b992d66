"""Tasks whose examples are a question with choices: each choice makes one input, the model gives each one score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from megatron.tasks.encode import IGNORED, Encoded, TaskBatch, encode_texts
from megatron.tasks.metrics import accuracies, softmax
from megatron.tasks.submission import json_lines
from megatron.tasks.task import Kind, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

NO_CHOICE = "无效答案"
"""What stands where an example has fewer choices than others (CLUE's C3 baseline)."""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A question with its choices.

    inputs: the segments of each choice's input; choices: how many of them exist, the others only fill up. answer: the
    index of the right one, None in test files. id: in the file, or the number of the question. group: the part of the
    dev questions that it belongs to, where parts are scored, too.
    """

    inputs: tuple[tuple[str, ...], ...]
    choices: int
    answer: int | None
    id: int | str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The index of the choice taken, and the probability of each that exists."""

    choice: int
    probabilities: tuple[float, ...]


class Answerable(Protocol):
    """What the scores need of an example."""

    @property
    def answer(self) -> int | None: ...

    @property
    def group(self) -> str: ...


def choice_scores(task: Task, examples: Sequence[Answerable], predictions: Sequence[Chosen]) -> dict[str, float]:
    """Accuracy, of groups too, and what always answering the commonest position of right choices would score."""
    del task
    answers = np.array([example.answer for example in examples])
    found = np.array([prediction.choice for prediction in predictions])
    return accuracies(found, answers, [example.group for example in examples])


def choice_lines(examples: Sequence[ChoiceExample], predictions: Sequence[Chosen]) -> str:
    """One line `{"id":508,"label":0}` a question, in the order of the test file; labels are positions, from 0."""
    pairs = zip(examples, predictions, strict=True)
    return json_lines({"id": example.id, "label": prediction.choice} for example, prediction in pairs)


def choice_loss(task: Task, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the choices of each row: outputs [rows * choices, 1]."""
    del task
    logits, labels = outputs.view(len(batch.rows), -1), torch.from_numpy(batch.labels).to(outputs.device)
    total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return total, (logits.argmax(1) == labels).sum()


def chosen(scores: np.ndarray, choice: int | None = None) -> Chosen:
    """The likeliest, or the given, of choices with these scores, [choices]."""
    return Chosen(int(scores.argmax()) if choice is None else choice, tuple(softmax(scores).tolist()))


def _encode(task: Task, examples: Sequence[ChoiceExample], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    return encode_texts(
        [segments for example in examples for segments in example.inputs],
        [IGNORED if example.answer is None else example.answer for example in examples],
        tokenizer,
        seq_length=seq_length,
        truncate=task.truncate,
        row_inputs=len(examples[0].inputs),
    )


def _decode(task: Task, examples: Sequence[ChoiceExample], encoded: Encoded, outputs: np.ndarray) -> list[Chosen]:
    del task
    scores = outputs.reshape(-1, encoded.row_inputs)
    return [chosen(row[: example.choices]) for example, row in zip(examples, scores, strict=True)]


CHOICES: Kind[ChoiceExample, Chosen] = Kind(
    name="multiple-choice",
    head="sequence",
    num_outputs=lambda task: 1,
    encode=_encode,
    loss=choice_loss,
    decode=_decode,
)
