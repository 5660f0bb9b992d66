"""Examples to token ids: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with token types 0 and 1; B may be several."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron.tasks.batching import padded_width

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

IGNORED = -100
"""The label of what has none."""
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """Inputs of some rows, padded to the longest: tokens and token_types int64 [b, s]; lengths, inputs int64 [b].

    labels: int64, as `Encoded` says, those of tokens [b, s] with `IGNORED` at padding. rows: int64, the rows; inputs:
    places of the inputs in the encoded file, several a row where a row has several inputs. masks: int64 [b, m],
    columns of [MASK] tokens, and candidates: int64 [b, c, m], what may stand there; of prompts only.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    inputs: np.ndarray
    masks: np.ndarray | None
    candidates: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A whole file as token ids, without padding. A row is what is drawn for a batch: `row_inputs` inputs.

    tokens: int32 [all]; offsets: int64 [n + 1], input i is tokens[offsets[i]:offsets[i + 1]]; first_lengths: int64
    [n], tokens of type 0; pad_id; truncated: examples that were cut.
    labels: int64, [rows], [rows, 2] (first and last token of a span), or with token_labels [all]; `IGNORED` where
    there is none.
    examples: int64 [rows], the example that a row is of, None where every example is one row. places: int32 [all, 2],
    the characters of the example's text from where to where a token stands for, -1 for none; None where not needed.
    masks, candidates: of the inputs of prompts, as in `TaskBatch`. notes: what else to tell of the examples.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    first_lengths: np.ndarray
    labels: np.ndarray
    pad_id: int
    truncated: int
    row_inputs: int = 1
    token_labels: bool = False
    examples: np.ndarray | None = None
    places: np.ndarray | None = None
    masks: np.ndarray | None = None
    candidates: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_inputs(self) -> int:
        """Inputs of the model."""
        return len(self.offsets) - 1

    @property
    def num_rows(self) -> int:
        """What can be drawn for a batch."""
        return self.num_inputs // self.row_inputs

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest input of every row, special tokens included, int64 [rows]."""
        longest: np.ndarray = np.diff(self.offsets).reshape(-1, self.row_inputs).max(axis=1)
        return longest

    def inputs_of(self, rows: np.ndarray) -> np.ndarray:
        """The inputs of some rows, one row after the other."""
        return (rows[:, None] * self.row_inputs + np.arange(self.row_inputs)).reshape(-1)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of the inputs of some rows, int64 [b]."""
        inputs = self.inputs_of(rows)
        return self.offsets[inputs + 1] - self.offsets[inputs]

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """The labels of some rows, or of their tokens, that are not ignored: int64 [labels], of spans [labels, 2]."""
        labels = self.labels[rows] if not self.token_labels else self.labels[self._tokens_of(rows)]
        return labels[(labels if labels.ndim == 1 else labels[:, 0]) != IGNORED]

    def _tokens_of(self, rows: np.ndarray) -> np.ndarray:
        """Places of the tokens of some rows, one row after the other."""
        parts = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def count(self, rows: np.ndarray) -> int:
        """Labels of some rows: what their sum of losses is divided by."""
        return len(self.labels_of(rows))

    def batch(self, rows: np.ndarray, *, multiple: int = 1) -> TaskBatch:
        """The rows (int64, may be none) as one batch, padded to `padded_width`, if any row is as long as that."""
        inputs, lengths = self.inputs_of(rows), self.lengths_of(rows)
        longest, most = int(lengths.max(initial=0)), int(self.lengths.max(initial=0))
        width = min(padded_width(longest, multiple=multiple), -(-most // multiple) * multiple)
        columns = np.arange(width)
        real = columns < lengths[:, None]
        places = (self.offsets[inputs, None] + columns)[real]
        tokens = np.full((len(inputs), width), self.pad_id, dtype=np.int64)
        tokens[real] = self.tokens[places]
        labels = self.labels if self.token_labels else self.labels[rows]
        if self.token_labels:
            labels = np.full((len(inputs), width), IGNORED, dtype=np.int64)
            labels[real] = self.labels[places]
        second = (columns >= self.first_lengths[inputs, None]) & real
        return TaskBatch(
            tokens=tokens,
            token_types=second.astype(np.int64),
            lengths=lengths,
            labels=labels,
            rows=rows,
            inputs=inputs,
            masks=None if self.masks is None else self.masks[inputs],
            candidates=None if self.candidates is None else self.candidates[inputs],
        )


def encode_texts(
    inputs: Sequence[tuple[str, ...]],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    *,
    seq_length: int,
    truncate: Literal["longest", "second"],
    row_inputs: int = 1,
) -> Encoded:
    """Encode inputs of one or more texts; the rest as `pack_segments` says."""

    def segments() -> Iterator[list[list[int]]]:
        for start in range(0, len(inputs), _CHUNK):
            chunk = inputs[start : start + _CHUNK]
            distinct = list({text: None for texts in chunk for text in texts})  # choices share their passage
            ids = {text: ids for text, (ids, _) in zip(distinct, tokenizer.encode_batch(distinct), strict=True)}
            yield from ([ids[text] for text in texts] for texts in chunk)

    return pack_segments(
        segments(), labels, tokenizer, seq_length=seq_length, truncate=truncate, row_inputs=row_inputs
    )


def pack_segments(
    inputs: Iterable[Sequence[Sequence[int]]],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    *,
    seq_length: int,
    truncate: Literal["longest", "second"],
    row_inputs: int = 1,
) -> Encoded:
    """Inputs of one or more segments of token ids, with special tokens and cut to at most seq_length tokens each.

    labels: of the rows, each of which has `row_inputs` inputs. truncate: inputs that are too long lose tokens at the
    end of the longest segment, one by one ("longest"; of equal ones the last, as BERT's own code does), or only of
    the second of two while it has any ("second"). Segments after the first are of token type 1.
    """
    tokens = array("i")
    offsets, first_lengths, truncated = array("q", [0]), array("q"), bytearray()
    for segments in inputs:
        sizes = [len(segment) for segment in segments]
        kept = kept_lengths(sizes, seq_length - 1 - len(segments), truncate)
        tokens.append(tokenizer.cls_id)
        for segment, size in zip(segments, kept, strict=True):
            tokens.extend(segment[:size])
            tokens.append(tokenizer.sep_id)
        offsets.append(len(tokens))
        first_lengths.append(kept[0] + 2)
        truncated.append(kept != sizes)
    return Encoded(
        tokens=np.array(tokens, dtype=np.int32),
        offsets=np.array(offsets, dtype=np.int64),
        first_lengths=np.array(first_lengths, dtype=np.int64),
        labels=np.asarray(labels, dtype=np.int64),
        pad_id=tokenizer.pad_id,
        truncated=int(np.array(truncated).reshape(-1, row_inputs).any(axis=1).sum()),
        row_inputs=row_inputs,
    )


def kept_lengths(sizes: list[int], room: int, truncate: Literal["longest", "second"]) -> list[int]:
    """How many tokens of each segment fit into `room` tokens together."""
    if sum(sizes) <= room:
        return sizes
    if truncate == "second" and len(sizes) == 2:
        first = min(sizes[0], room)
        return [first, room - first]
    cap, left = 0, room
    for size, others in zip(sorted(sizes), range(len(sizes), 0, -1), strict=True):
        cap = left // others  # of each of those that are left
        if size > cap:
            break
        left -= size
    kept = [min(size, cap) for size in sizes]
    for number in [number for number, size in enumerate(sizes) if size > cap][: room - sum(kept)]:
        kept[number] += 1
    return kept
