"""Examples to token ids: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with token types 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron.tasks.readers import Example

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """Inputs of some rows, padded to the longest: tokens and token_types int64 [b, s]; lengths, labels, rows int64 [b].

    labels: class indices, -1 where the file has none. rows: places in the encoded file.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A whole file as token ids, without padding.

    tokens: int32 [all]; offsets: int64 [n + 1], row i is tokens[offsets[i]:offsets[i + 1]]; first_lengths: int64 [n],
    tokens of type 0; labels: int64 [n]; pad_id; truncated: rows that were cut.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    first_lengths: np.ndarray
    labels: np.ndarray
    pad_id: int
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, special tokens included, int64 [n]."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of some rows, int64 [b]."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def batch(self, rows: np.ndarray, *, multiple: int = 1) -> TaskBatch:
        """The rows (int64 [b], b may be 0) as one batch, padded to the longest and to a multiple of so many tokens."""
        lengths = self.lengths_of(rows)
        width = -(-int(lengths.max(initial=0)) // multiple) * multiple
        tokens = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : lengths[place]] = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        columns = np.arange(width)
        second = (columns >= self.first_lengths[rows, None]) & (columns < lengths[:, None])
        return TaskBatch(
            tokens=tokens, token_types=second.astype(np.int64), lengths=lengths, labels=self.labels[rows], rows=rows
        )


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, *, seq_length: int, truncate: Literal["longest", "second"]
) -> Encoded:
    """Encode examples to at most seq_length tokens each, special tokens included.

    truncate: pairs that are too long lose tokens at the end of the longer segment, one by one ("longest"; of equal
    ones the second, as BERT's own code does), or only of the second segment while it has any ("second").
    """
    pieces: list[np.ndarray] = []
    lengths = np.zeros(len(examples) + 1, dtype=np.int64)
    first_lengths = np.zeros(len(examples), dtype=np.int64)
    truncated = 0
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        ids = iter([ids for ids, _ in tokenizer.encode_batch([text for example in chunk for text in example.texts])])
        for row, example in enumerate(chunk, start):
            segments = [next(ids) for _ in example.texts]
            sizes = [len(segment) for segment in segments]
            kept = kept_lengths(sizes, seq_length - 1 - len(segments), truncate)
            truncated += kept != sizes
            tokens = [tokenizer.cls_id]
            for segment, size in zip(segments, kept, strict=True):
                tokens += [*segment[:size], tokenizer.sep_id]
            pieces.append(np.asarray(tokens, dtype=np.int32))
            lengths[row + 1] = len(tokens)
            first_lengths[row] = kept[0] + 2
    return Encoded(
        tokens=np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32),
        offsets=np.cumsum(lengths),
        first_lengths=first_lengths,
        labels=np.asarray([-1 if example.label is None else example.label for example in examples], dtype=np.int64),
        pad_id=tokenizer.pad_id,
        truncated=truncated,
    )


def kept_lengths(sizes: list[int], room: int, truncate: Literal["longest", "second"]) -> list[int]:
    """How many tokens of each of one or two segments fit into `room` tokens together."""
    if sum(sizes) <= room:
        return sizes
    if len(sizes) == 1:
        return [room]
    first, second = sizes
    if truncate == "second":
        first = min(first, room)
    elif second <= room // 2:
        first = room - second
    elif first > room - room // 2:
        first = room - room // 2
    return [first, room - first]
