"""Files of texts with entities: JSON lines with spans, and columns of characters and tags."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.errors import UserError
from megatron.tasks.kinds.tagging import TaggedText
from megatron.tasks.kinds.tags import OUTSIDE, Entity, entities_of, scheme_of, tag_set, types_of
from megatron.tasks.readers import Row, read_lines, read_rows, shortened
from megatron.tasks.task import Split, Task

if TYPE_CHECKING:
    from megatron.tasks.config import TaskConfig


def read_spans(task: Task, path: Path, split: Split) -> list[TaggedText]:
    """JSON lines as CLUENER2020's: `{"text":"王明来了","label":{"name":{"王明":[[0,1]]}}}`, the last index included.

    In test files a label is not looked at; an `id` is kept.
    """
    types = types_of(task.labels)
    examples: list[TaggedText] = []
    for number, row in enumerate(read_rows(path)):
        if split == "test":
            id_ = row.code("id") if "id" in row.values else number
            examples.append(TaggedText(row.text("text"), None, id_))
            continue
        text, entities = _spans(row)
        unknown = next((entity.type for entity in entities if entity.type not in types), None)
        if unknown is not None:
            raise row.error(f"type {unknown!r} is none of the {len(types)} of {task.name}: {shortened(types)}")
        examples.append(TaggedText(text, entities, number))
    return examples


def column_reader(*, segmented: bool = False) -> Callable[[Task, Path, Split], list[TaggedText]]:
    """A reader of columns: a character and its tag a line, a tab or a space between, a blank line after a text.

    Of more columns the first and the last count. A character may be a space; a line may have a word, and a space comes
    between words of ASCII. segmented: the character is followed by the number of its place in its word (Weibo).
    In test files tags are not looked at and may be missing.
    """

    def read(task: Task, path: Path, split: Split) -> list[TaggedText]:
        known = frozenset(task.labels)
        examples: list[TaggedText] = []
        for number, cells in enumerate(_sentences(path, segmented=segmented, tagged=split != "test")):
            text, starts = _joined([cell.text for cell in cells])
            entities = None
            if split != "test":
                for cell in cells:
                    if cell.tag not in known:
                        raise cell.error(
                            f"tag {cell.tag!r} is none of the {len(known)} of {task.name}: {shortened(task.labels)}"
                        )
                entities = tuple(
                    Entity(starts[entity.first], starts[entity.last] + len(cells[entity.last].text) - 1, entity.type)
                    for entity in entities_of([cell.tag for cell in cells])
                )
            examples.append(TaggedText(text, entities, number))
        return examples

    return read


def read_tagged(task: Task, path: Path, split: Split) -> list[TaggedText]:
    """A user's own file: spans where its name ends in .json or .jsonl, else columns."""
    return read_spans(task, path, split) if _is_json(path) else column_reader()(task, path, split)


def own_tags(task: Task, file: Path, config: TaskConfig) -> Task:
    """The task with the tags of a user's own files: all that its scheme has for the types in the training file.

    file: the training file, or the dev file where nothing is trained. JSON spans are tagged by BIO. Raises `UserError`
    where there are no entities, and for tags of no one scheme.
    """
    if config.labels:
        return dataclasses.replace(task, labels=config.labels)
    if _is_json(file):
        types = {entity.type for row in read_rows(file) for entity in _spans(row)[1]}
        labels = tag_set(sorted(types), "BIO")
    else:
        labels = _own_tag_set(file)
    if len(labels) == 1:
        raise UserError(f"{file} has no entities: at least one is needed")
    return dataclasses.replace(task, labels=labels)


def _own_tag_set(file: Path) -> tuple[str, ...]:
    """The tags of a scheme for the types in a file of columns."""
    tags: set[str] = set()
    for cells in _sentences(file, segmented=False, tagged=True):
        for cell in cells:
            if cell.tag in tags:
                continue
            letter, hyphen, type_ = cell.tag.partition("-")
            if cell.tag != OUTSIDE and not (letter in tuple("BIMES") and hyphen and type_):
                raise cell.error(f"tag {cell.tag!r} is neither O nor B-, I-, M-, E- or S- and a type")
            tags.add(cell.tag)
            if scheme_of(tags) is None:
                raise cell.error(f"tag {cell.tag!r} is of another scheme than those before it (BIO, BMES or BIOES)")
    scheme = scheme_of(tags)
    assert scheme is not None
    return tag_set(sorted(types_of(sorted(tags))), scheme)


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".json", ".jsonl"))


def _spans(row: Row) -> tuple[str, tuple[Entity, ...]]:
    """Text and entities of a row, in the order of the text."""
    text, label = row.text("text"), row.value("label")
    if not text:
        raise row.error("'text' is empty")
    if not isinstance(label, dict):
        raise row.error('\'label\' must be an object like {"name": {"王明": [[0, 1]]}}')
    entities: set[Entity] = set()
    for type_, mentions in label.items():
        if not type_ or not type_.isprintable():
            raise row.error(f"{type_!r} is no name of a type")
        if not isinstance(mentions, dict):
            raise row.error(f"type {type_!r} must have an object of mentions and their spans")
        for mention, spans in mentions.items():
            for first, last in _pairs(row, mention, spans):
                if not 0 <= first <= last < len(text):
                    raise row.error(f"{mention!r} at [{first}, {last}] is outside the {len(text)} characters of 'text'")
                if text[first : last + 1] != mention:
                    raise row.error(
                        f"{mention!r} does not stand at [{first}, {last}] (the last is included) of 'text': there is "
                        f"{text[first : last + 1]!r}"
                    )
                entities.add(Entity(first, last, type_))
    return text, tuple(sorted(entities))


def _pairs(row: Row, mention: str, spans: object) -> Sequence[tuple[int, int]]:
    def is_pair(span: object) -> bool:
        return isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)

    if not isinstance(spans, list) or not all(map(is_pair, spans)):
        found = json.dumps(spans, ensure_ascii=False)[:80]
        raise row.error(f"spans of {mention!r} must be a list of [first, last], not {found}")
    return spans


@dataclass(frozen=True, slots=True)
class _Cell:
    """A line of columns."""

    path: Path
    line: int
    text: str
    tag: str

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}, line {self.line}: {message}")


def _sentences(path: Path, *, segmented: bool, tagged: bool) -> Iterator[list[_Cell]]:
    """The lines of each text. tagged: all must have a tag; otherwise it may be missing."""
    cells: list[_Cell] = []
    for number, line in read_lines(path):
        line = line.rstrip(" \t")
        if line:
            cells.append(_cell(path, number, line, segmented=segmented, tagged=tagged))
        elif cells:
            yield cells
            cells = []
    if cells:
        yield cells


def _cell(path: Path, number: int, line: str, *, segmented: bool, tagged: bool) -> _Cell:
    separator = "\t" if "\t" in line else " "
    text, found, tag = line.rpartition(separator)
    if not found and not tagged:
        text, tag = line, OUTSIDE
    text = text.split(separator, 1)[0] or text[:1]  # the character may be what separates
    cell = _Cell(path, number, text, tag)
    if not found and tagged:
        raise cell.error(f"no tag after {line[:20]!r}: a line is a character, a tab or a space, and its tag")
    if segmented:
        if len(text) < 2 or not ("0" <= text[-1] <= "9"):
            raise cell.error(f"column 1 must be a character and the digit of its place in its word, not {text[:20]!r}")
        return _Cell(path, number, text[:-1], tag)
    if not text:
        raise cell.error(f"no character before the tag {tag!r}")
    return cell


def _joined(cells: Sequence[str]) -> tuple[str, list[int]]:
    """Characters or words as one text, and where each begins in it."""
    parts: list[str] = []
    starts: list[int] = []
    length, before = 0, ""
    for cell in cells:
        touching = before[-1:] + cell[0]
        words = len(touching) == 2 and touching.isascii() and touching.isalnum()
        if words and (len(before) > 1 or len(cell) > 1):
            parts.append(" ")
            length += 1
        starts.append(length)
        parts.append(cell)
        length += len(cell)
        before = cell
    return "".join(parts), starts
