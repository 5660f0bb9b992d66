"""Tasks whose examples are blanks in a passage, with candidate idioms shared by all blanks of a file's row.

Inputs are those of CLUE's baseline of CHID; the joint decoding by assignment is that of bert4keras' CLUE examples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, pack_segments
from megatron.tasks.kinds.choices import CHOICES, NO_CHOICE, Chosen, chosen
from megatron.tasks.task import Kind, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

BLANK = "[unused1]"
"""The token of the blank that is asked for."""
OTHER_BLANK_MASKS = 4
"""An idiom has four characters."""
_PLAIN_MARKS = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "…": "..."})
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Blank:
    """One blank of a passage.

    pieces: the passage without its blanks; blank: the number of this one, between pieces[blank] and the next.
    candidates: the idioms; answer: the index of the right one, None in test files. row: where the row stands, for
    messages; the same for all blanks that share candidates, each of which stands in one blank at most. id: the tag of
    the blank, or the id of the row.
    """

    pieces: tuple[str, ...]
    blank: int
    candidates: tuple[str, ...]
    answer: int | None
    id: int | str
    row: str
    group: str = ""

    def error(self, message: str) -> UserError:
        """A `UserError` that names the row."""
        return UserError(f"{self.row}: {message}")


def joint_choices(scores: np.ndarray) -> np.ndarray:
    """The candidate of each blank, none twice, of the largest sum of scores.

    scores: [blanks, candidates], logits or log-probabilities alike; int64 [blanks]. Where there are more blanks than
    candidates each blank takes its own best.
    """
    from scipy.optimize import linear_sum_assignment  # slow to load, and no other task needs it

    blanks, candidates = scores.shape
    if blanks > candidates:
        return scores.argmax(axis=1)
    places: np.ndarray = linear_sum_assignment(np.nan_to_num(scores), maximize=True)[1]
    return places


def window(left: Sequence[int], right: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """The `room` tokens around a blank, half on each side, more on one where the other has fewer."""
    before = min(len(left), max(room // 2, room - len(right)))
    return left[len(left) - before :], right[: room - before]


def _encode(task: Task, examples: Sequence[Blank], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    """[CLS] candidate [SEP] left [unused1] right [SEP], of token type 0; other blanks are four [MASK].

    A vocabulary without [unused1] has [MASK] there. The windows of a blank's candidates are the same.
    """
    mark = [tokenizer.tokens.index(BLANK) if BLANK in tokenizer.tokens else tokenizer.mask_id]
    masks = [tokenizer.mask_id] * OTHER_BLANK_MASKS
    row_inputs = max(len(example.candidates) for example in examples)
    cut = 0

    def segments() -> Iterator[tuple[list[int], list[int]]]:
        nonlocal cut
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            distinct = list({text: None for one in chunk for text in (*one.pieces, *one.candidates, NO_CHOICE)})
            plain = [text.translate(_PLAIN_MARKS) for text in distinct]
            ids = {text: ids for text, (ids, _) in zip(distinct, tokenizer.encode_batch(plain), strict=True)}
            for one in chunk:
                idioms = [ids[candidate][: seq_length - 4] for candidate in one.candidates]
                idioms += [ids[NO_CHOICE][: seq_length - 4]] * (row_inputs - len(idioms))
                sides = [
                    list(itertools.chain.from_iterable(ids[piece] + masks for piece in pieces))
                    for pieces in (one.pieces[: one.blank + 1], one.pieces[one.blank + 1 :])
                ]
                before, after = (side[: -len(masks)] for side in sides)
                room = seq_length - 4 - max(map(len, idioms))
                left, right = window(before, after, room)
                cut += len(before) + len(after) > room
                yield from ((idiom, [*left, *mark, *right]) for idiom in idioms)

    encoded = pack_segments(
        segments(),
        [IGNORED if example.answer is None else example.answer for example in examples],
        tokenizer,
        seq_length=seq_length,
        truncate=task.truncate,
        row_inputs=row_inputs,
    )
    return dataclasses.replace(encoded, first_lengths=np.diff(encoded.offsets), truncated=cut)


def decode_jointly(task: Task, examples: Sequence[Blank], encoded: Encoded, outputs: np.ndarray) -> list[Chosen]:
    """The blanks of a row together: outputs [blanks, candidates], or [blanks * candidates, 1]."""
    del task, encoded
    rows = zip(examples, outputs.reshape(len(examples), -1), strict=True)
    predictions: list[Chosen] = []
    for _, blanks in itertools.groupby(rows, key=lambda pair: pair[0].row):
        scores = np.stack([row[: len(example.candidates)] for example, row in blanks])
        predictions += [chosen(row, int(best)) for row, best in zip(scores, joint_choices(scores), strict=True)]
    return predictions


CLOZE: Kind[Blank, Chosen] = Kind(
    name=CHOICES.name,
    head=CHOICES.head,
    num_outputs=CHOICES.num_outputs,
    encode=_encode,
    loss=CHOICES.loss,
    decode=decode_jointly,
)
