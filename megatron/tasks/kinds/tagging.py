"""Tasks whose examples are texts with entities: every character gets a tag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from megatron.tasks.encode import IGNORED, Encoded, TaskBatch
from megatron.tasks.kinds.tags import Entity, entities_of, spell
from megatron.tasks.readers import Row, texts_to_predict
from megatron.tasks.submission import json_lines
from megatron.tasks.task import Kind, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

_STOPS = ("。！？；", "，、：")
"""Marks after which a long text is cut, the better ones first."""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text, its entities (None in test files), and the id in the file or the number of the text."""

    text: str
    entities: tuple[Entity, ...] | None
    id: int | str


def parse_text(task: Task, row: Row) -> TaggedText:
    """A text to tag: a row of "text", or it alone."""
    (text,) = texts_to_predict(row, ("text",), task.name)
    return TaggedText(text, None, row.line)


def entities_as_json(task: Task, example: TaggedText, prediction: tuple[Entity, ...]) -> dict[str, Any]:
    """Entities with their characters [first, last] and what they read."""
    del task
    found = [{**asdict(entity), "text": example.text[entity.first : entity.last + 1]} for entity in prediction]
    return {"entities": found}


def character_ids(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """The token of every character of some texts.

    A character is a token of its own, as in the baselines of CLUENER2020 and PaddleNLP: wherever an entity begins or
    ends, tags can say so. [UNK] stands for what the tokenizer drops (spaces) and what it makes several tokens of.
    """
    characters = sorted(set().union(*texts))
    known = [character for character in characters if not "\ud800" <= character <= "\udfff"]  # halves of a pair
    ids = dict.fromkeys(characters, tokenizer.unk_id)
    for character, (tokens, offsets) in zip(known, tokenizer.encode_batch(known), strict=True):
        # SentencePiece puts a piece of no characters before a word
        real = [token for token, (begin, end) in zip(tokens, offsets, strict=True) if end > begin]
        if len(real) == 1:
            ids[character] = real[0]
    return ids


def cuts(text: str, room: int) -> list[int]:
    """Where the parts of a text end, each of at most `room` characters; an empty text is one part.

    A part that is full ends after the last mark of punctuation in its second half, if it has one.
    """
    ends: list[int] = []
    start = 0
    while len(text) - start > room:
        middle, full = start + room // 2, start + room
        found = (max(text.rfind(mark, middle, full) for mark in marks) + 1 for marks in _STOPS)
        start = next((end for end in found if end), full)
        ends.append(start)
    return [*ends, len(text)]


def encode_tagged(task: Task, examples: Sequence[TaggedText], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    """[CLS] characters [SEP], with the class of each character's tag; long texts are several rows, nothing is lost."""
    ids = character_ids((example.text for example in examples), tokenizer)
    index = {tag: number for number, tag in enumerate(task.labels)}
    tokens: list[int] = []
    labels: list[int] = []
    lengths, of_example, starts = [0], [], []
    for number, example in enumerate(examples):
        text, classes = example.text, [IGNORED] * len(example.text)
        if example.entities is not None:
            classes = [index[tag] for tag in spell(example.entities, len(text), task.labels)]
        start = 0
        for end in cuts(text, seq_length - 2):
            tokens += [tokenizer.cls_id, *(ids[character] for character in text[start:end]), tokenizer.sep_id]
            labels += [IGNORED, *classes[start:end], IGNORED]
            lengths.append(end - start + 2)
            of_example.append(number)
            starts.append(start)
            start = end
    offsets = np.cumsum(lengths, dtype=np.int64)
    return Encoded(
        tokens=np.array(tokens, dtype=np.int32),
        offsets=offsets,
        first_lengths=np.array(lengths[1:], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        pad_id=tokenizer.pad_id,
        truncated=0,
        token_labels=True,
        examples=np.array(of_example, dtype=np.int64),
        places=_places(offsets, np.array(starts, dtype=np.int64)),
    )


def _places(offsets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`Encoded.places` of rows whose first characters are `starts`, int64 [rows]."""
    first = np.arange(offsets[-1]) - np.repeat(offsets[:-1] + 1 - starts, np.diff(offsets))
    places = np.stack([first, first + 1], axis=1).astype(np.int32)
    places[offsets[:-1]] = places[offsets[1:] - 1] = -1
    return places


def tag_loss(task: Task, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the tags of characters: outputs [b, s, tags]."""
    del task
    labels = torch.from_numpy(batch.labels).to(outputs.device)
    total = torch.nn.functional.cross_entropy(
        outputs.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED
    )
    return total, (outputs.argmax(2) == labels).sum()


def likeliest_entities(
    task: Task, examples: Sequence[TaggedText], encoded: Encoded, outputs: np.ndarray
) -> list[tuple[Entity, ...]]:
    """The entities that the likeliest tag of each character spells, over all parts of a text: outputs [tokens, tags].

    Tags that no sequence of the scheme has are read as `entities_of` says.
    """
    assert encoded.places is not None
    classes = outputs[encoded.places[:, 0] >= 0].argmax(1)
    ends = np.cumsum([len(example.text) for example in examples])
    assert len(classes) == ends[-1]
    parts = np.split(classes, ends[:-1])
    return [tuple(entities_of([task.labels[number] for number in part])) for part in parts]


def entity_lines(examples: Sequence[TaggedText], predictions: Sequence[Sequence[Entity]]) -> str:
    """One line `{"id":0,"label":{"name":{"王明":[[0,1]]}}}` a text, as CLUENER2020 wants; the last index included."""
    rows = []
    for example, entities in zip(examples, predictions, strict=True):
        label: dict[str, dict[str, list[list[int]]]] = {}
        for entity in entities:
            mention = example.text[entity.first : entity.last + 1]
            label.setdefault(entity.type, {}).setdefault(mention, []).append([entity.first, entity.last])
        rows.append({"id": example.id, "label": label})
    return json_lines(rows)


TAGGING: Kind[TaggedText, tuple[Entity, ...]] = Kind(
    name="tagging",
    head="token",
    num_outputs=lambda task: len(task.labels),
    encode=encode_tagged,
    loss=tag_loss,
    decode=likeliest_entities,
    as_json=entities_as_json,
)
