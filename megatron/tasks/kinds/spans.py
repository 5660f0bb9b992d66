"""Reading comprehension: the answer to a question is a span of its context.

A context that is too long for one input is read through windows that overlap: [CLS] question [SEP] piece [SEP]. The
model scores every token as the first and as the last of the answer; [CLS] stands for "not in this window" (Devlin et
al., 2018, and their `run_squad.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, TaskBatch
from megatron.tasks.metrics import softmax
from megatron.tasks.readers import Row, texts_to_predict
from megatron.tasks.task import Kind, Reading, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a context.

    answers: the golden ones as the file writes them, none where the question has no answer and in test files.
    span: characters [begin, end) of the first of them that stands in the context; empty where the question has no
    answer, None where it is not known. moved: whether the file gave another place for it.
    """

    id: int | str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, stop) of a context, which read `text`, and the probability that they are the answer."""

    text: str
    start: int
    stop: int
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for a question: characters [start, stop) of the context, which read `text`.

    text is empty, and start and stop are 0, where the question is held to have no answer. best: the likeliest spans,
    best first. Probabilities are a softmax over those, and over "no answer" for tasks that have such questions.
    null_odds: how much "no answer" scores above the likeliest span (logits); 0 where there is no span at all.
    """

    text: str
    start: int
    stop: int
    probability: float
    null_odds: float
    best: tuple[Span, ...]


def parse_question(task: Task, row: Row) -> Question:
    """A question to answer: a row of "question" and "context", or the two as texts."""
    question, context = texts_to_predict(row, ("question", "context"), task.name)
    return Question(row.line, question, context)


def reading_of(task: Task) -> Reading:
    """The options of a reading task."""
    if task.reading is None:
        raise ValueError(f"{task.name} is no reading task")
    return task.reading


def window_starts(tokens: int, room: int, stride: int) -> range:
    """First tokens of the windows over a context, each at most `room` long; the last one holds the last token."""
    step = min(stride, room)
    return range(0, max(tokens - room, 0) + step, step)


def tokens_of(places: np.ndarray, begin: int, end: int) -> tuple[int, int] | None:
    """The first and the last token that share a character with [begin, end); places: int [tokens, 2]."""
    found = np.flatnonzero((places[:, 0] < end) & (places[:, 1] > begin))
    return (int(found[0]), int(found[-1])) if len(found) else None


def _encode(task: Task, examples: Sequence[Question], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    """A row is a window. Its label (first and last token of the answer) is [CLS] unless it holds the whole answer."""
    reading = reading_of(task)
    tokens: list[np.ndarray] = []
    places: list[np.ndarray] = []
    windows: list[tuple[int, int]] = []  # example, tokens of type 0
    labels: list[tuple[int, int]] = []
    truncated = 0
    for chunk_start in range(0, len(examples), _CHUNK):
        chunk = examples[chunk_start : chunk_start + _CHUNK]
        texts = list(dict.fromkeys(example.context for example in chunk))
        contexts = {
            text: (np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int32).reshape(-1, 2))
            for text, (ids, offsets) in zip(texts, tokenizer.encode_batch(texts), strict=True)
        }
        questions = tokenizer.encode_batch([example.question for example in chunk])
        for number, (example, (question, _)) in enumerate(zip(chunk, questions, strict=True), chunk_start):
            head = np.array([tokenizer.cls_id, *question[: reading.max_query_length], tokenizer.sep_id], dtype=np.int32)
            truncated += len(question) > reading.max_query_length
            room = seq_length - len(head) - 1
            if room < 1:
                raise UserError(
                    f"--seq-length {seq_length} has no room for a context beside question {example.id} of "
                    f"{len(head) - 2} tokens; give more, or a lower --max-query-length"
                )
            ids, offsets = contexts[example.context]
            answer = tokens_of(offsets, *example.span) if example.span else None
            for start in window_starts(len(ids), room, reading.doc_stride):
                piece = offsets[start : start + room]
                tokens += [head, ids[start : start + room], np.array([tokenizer.sep_id], dtype=np.int32)]
                places += [np.full((len(head), 2), -1, dtype=np.int32), piece, np.full((1, 2), -1, dtype=np.int32)]
                windows.append((number, len(head)))
                if example.span is None:
                    labels.append((IGNORED, IGNORED))
                elif answer is None or answer[0] < start or answer[1] >= start + room:
                    labels.append((0, 0))
                else:
                    labels.append((len(head) + answer[0] - start, len(head) + answer[1] - start))
    lengths = [sum(map(len, tokens[i : i + 3])) for i in range(0, len(tokens), 3)]
    moved = sum(example.moved for example in examples)
    return Encoded(
        tokens=np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        first_lengths=np.array([length for _, length in windows], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64).reshape(-1, 2),
        pad_id=tokenizer.pad_id,
        truncated=truncated,
        examples=np.array([number for number, _ in windows], dtype=np.int64),
        places=np.concatenate(places) if places else np.zeros((0, 2), dtype=np.int32),
        notes=(f"{moved} answers moved to where their text stands",) if moved else (),
    )


def _loss(task: Task, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Mean of the cross-entropies of first and last token over the real tokens; a hit has both right."""
    del task
    labels = torch.from_numpy(batch.labels).to(outputs.device)
    lengths = torch.from_numpy(batch.lengths).to(outputs.device)
    padding = torch.arange(outputs.shape[1], device=outputs.device) >= lengths[:, None]
    scores = outputs.masked_fill(padding[:, :, None], float("-inf"))  # [b, s, 2]
    total = torch.nn.functional.cross_entropy(scores, labels, reduction="sum", ignore_index=IGNORED) / 2
    return total, (scores.argmax(1) == labels).all(dim=1).sum()


def _decode(task: Task, examples: Sequence[Question], encoded: Encoded, outputs: np.ndarray) -> list[Answer]:
    """The best span over all windows of each question: outputs [tokens, 2], scores of first and last tokens."""
    assert encoded.examples is not None
    reading = reading_of(task)
    windows = np.searchsorted(encoded.examples, np.arange(len(examples) + 1))
    return [
        _answer(reading, example, encoded, outputs, range(windows[number], windows[number + 1]))
        for number, example in enumerate(examples)
    ]


def _answer(reading: Reading, example: Question, encoded: Encoded, outputs: np.ndarray, windows: range) -> Answer:
    """The answer of one example, from its windows."""
    found = [_window_spans(reading, encoded, outputs, window) for window in windows]
    scores, places = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    null = min(float(outputs[encoded.offsets[window]].sum(dtype=np.float64)) for window in windows)
    best: dict[tuple[int, int], float] = {}  # overlapping windows find the same span: its best score comes first
    for place in np.argsort(-scores, kind="stable"):
        start, stop = _stripped(example.context, *places[place].tolist())
        if start < stop:
            best.setdefault((start, stop), float(scores[place]))
        if len(best) == reading.n_best_size:
            break
    if not best:
        return Answer("", 0, 0, 1.0, 0.0, ())
    logits = [*best.values(), *([null] if reading.version_2_with_negative else [])]
    probabilities = softmax(np.array(logits)).tolist()
    spans = tuple(
        Span(example.context[start:stop], start, stop, probability)
        for (start, stop), probability in zip(best, probabilities, strict=False)
    )
    odds = null - logits[0]
    if reading.version_2_with_negative and odds > reading.null_score_diff_threshold:
        return Answer("", 0, 0, probabilities[-1], odds, spans)
    first = spans[0]
    return Answer(first.text, first.start, first.stop, first.probability, odds, spans)


def _window_spans(
    reading: Reading, encoded: Encoded, outputs: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [k] and characters [k, 2] of the valid spans of the n best first and the n best last tokens."""
    assert encoded.places is not None
    context = slice(encoded.offsets[window] + encoded.first_lengths[window], encoded.offsets[window + 1] - 1)
    logits, places = outputs[context].astype(np.float64), encoded.places[context]
    first, last = np.argsort(-logits, axis=0, kind="stable")[: reading.n_best_size].T
    length = last[None, :] - first[:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= reading.max_answer_length))
    first, last = first[i], last[j]
    return logits[first, 0] + logits[last, 1], np.stack([places[first, 0], places[last, 1]], axis=1)


def _stripped(text: str, start: int, stop: int) -> tuple[int, int]:
    """The characters of a span without the spaces at its ends, which SentencePiece counts to a word."""
    start = stop - len(text[start:stop].lstrip())
    return start, start + len(text[start:stop].rstrip())


SPANS: Kind[Question, Answer] = Kind(
    name="reading",
    head="token",
    num_outputs=lambda task: 2,
    encode=_encode,
    loss=_loss,
    decode=_decode,
)
