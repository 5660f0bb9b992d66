"""What a test file asks: the ids that a result file must answer, in order, and what an answer may be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from megatron.tasks.benchmark.boards import Form, Result
from megatron.tasks.readers import find_file, read_content, read_rows

# As in CHID: one blank of a passage.
_BLANK = re.compile(r"#idiom\d+#")


@dataclass(frozen=True, slots=True)
class Question:
    """id: as text, for servers take both types. choices: how many there are to choose from. text: to mark spans in."""

    id: str
    choices: int = 0
    text: str = ""


def find_test_file(folder: Path, result: Result) -> Path | None:
    """The test file that a result answers, if it is in the folder."""
    found = (find_file(folder, name) for name in result.test_files)
    return next((path for path in found if path is not None), None)


def read_questions(path: Path, form: Form, id_key: str = "id") -> list[Question]:
    """The questions of a test file, in its order. Raises `UserError` for a file that is none of this form."""
    if form == "labels":
        return [Question(str(row.code(id_key))) for row in read_rows(path)]
    if form == "spans":
        return [Question(str(row.code(id_key)), text=row.text("text")) for row in read_rows(path)]
    if form == "blanks":
        return [
            Question(tag, choices=len(row.texts("candidates")))
            for row in read_rows(path)
            for passage in row.texts("content")
            for tag in _BLANK.findall(passage)
        ]
    try:
        values = json.loads(read_content(path))
    except (ValueError, RecursionError):
        # FewCLUE's idioms: a line each
        return [Question(str(row.code(id_key)), choices=len(row.texts("candidates"))) for row in read_rows(path)]
    try:
        return list(_reading(values) if form == "answers" else _multiple_choice(values))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path} is not a test file of {form}: a key is missing or of another type") from None


def _reading(values: Any) -> Iterator[Question]:
    """SQuAD's nesting, and that of CMRC 2018's own files."""
    passages = (
        [passage for document in values["data"] for passage in document["paragraphs"]]
        if isinstance(values, dict)
        else values
    )
    for passage in passages:
        for question in passage["qas"]:
            yield Question(str(question["id"] if "id" in question else question["query_id"]))


def _multiple_choice(values: Any) -> Iterator[Question]:
    """C3: [context lines, questions, ...] a document; one object is FewCLUE's file of a single line."""
    if isinstance(values, dict):
        yield Question(str(values["id"]), choices=len(values["candidates"]))
        return
    for _, questions, *_ in values:
        for question in questions:
            yield Question(str(question["id"]), choices=len(question["choice"]))
