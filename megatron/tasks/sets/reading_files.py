"""Files of reading comprehension: SQuAD's nested form, which DRCD and CLUE share, and CMRC 2018's own flat lists.

SQuAD: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]},
with "is_impossible" in 2.0 (Rajpurkar et al., 2016, 2018). CMRC: [{"context_text", "qas": [{"query_id", "query_text",
"answers": [text]}]}] (Cui et al., 2019).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from megatron.tasks.kinds.spans import Question, reading_of
from megatron.tasks.readers import Row, read_content
from megatron.tasks.task import Split, Task

MAX_MOVE = 3


def read_questions(task: Task, path: Path, split: Split) -> list[Question]:
    """The questions of a file, in its order.

    The span of a question is that of its first answer that stands in the context. Offsets that miss it are mended by
    `locate`. A dev file keeps all its golden answers, even those that the context lacks; in training there must be
    one to learn from. Answers of test files are not looked at.

    Raises `UserError` that names the place in the file and the question.
    """
    unanswerable = reading_of(task).version_2_with_negative
    questions: list[Question] = []
    ids: set[str] = set()
    for context, row, (id_key, text_key) in _entries(path):
        code = row.code(id_key)
        row = Row(path, f"question {code} at {row.line}", row.values)
        if str(code) in ids:
            raise row.error("another question has this id, too")
        ids.add(str(code))
        text = row.text(text_key)
        if split == "test":
            questions.append(Question(code, text, context))
            continue
        answers = _answers(row)
        if not answers and not unanswerable:
            raise row.error("no answer; only SQuAD 2.0 (--task squad --version-2-with-negative) has such questions")
        if unanswerable and row.values.get("is_impossible", not answers) is not (not answers):
            raise row.error(f"it has {len(answers)} answers, which its 'is_impossible' denies")
        span, moved = _span(context, answers) if answers else ((0, 0), False)
        if span is None and split == "train":
            raise row.error(f"the answer {answers[0][0]!r} does not stand in the context")
        questions.append(Question(code, text, context, tuple(answer for answer, _ in answers), span, moved))
    return questions


def locate(context: str, answer: str, start: int) -> int | None:
    """The first character of an answer in its context, None if it does not stand there.

    At `start`; else up to three characters before it, where CMRC 2018 is mended so by CLUE's own reader; else the
    place nearest to it.
    """
    for moved in range(min(MAX_MOVE, start) + 1):
        if context.startswith(answer, start - moved):
            return start - moved
    places = (match.start() for match in re.finditer(f"(?={re.escape(answer)})", context))
    return min(places, key=lambda place: abs(place - start), default=None)


def read_json(path: Path) -> Any:
    """The value of a JSON file, also as `.gz`. Raises `UserError` for one that cannot be read or is no JSON."""
    content = read_content(path)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _entries(path: Path) -> Iterator[tuple[str, Row, tuple[str, str]]]:
    """Each question with its context, and its keys of the id and of the text."""
    value = read_json(path)
    if isinstance(value, list):
        for part in _objects(path, "", value):
            context = part.text("context_text")
            for row in _members(part, "qas"):
                yield context, row, ("query_id", "query_text")
    elif isinstance(value, dict) and isinstance(value.get("data"), list):
        for article in _objects(path, "data", value["data"]):
            for paragraph in _members(article, "paragraphs"):
                context = paragraph.text("context")
                for row in _members(paragraph, "qas"):
                    yield context, row, ("id", "question")
    else:
        raise UserError(
            f'{path}: neither {{"data": [...]}}, as SQuAD, CLUE and DRCD write it, nor a list, as CMRC 2018'
        )


def _members(row: Row, key: str) -> Iterator[Row]:
    """The objects in the list of a key."""
    values = row.value(key)
    if not isinstance(values, list):
        raise row.error(f"{key!r} must be a list, not {json.dumps(values, ensure_ascii=False)[:80]}")
    return _objects(row.path, f"{row.line}.{key}", values)


def _objects(path: Path, name: str, values: list[Any]) -> Iterator[Row]:
    for number, value in enumerate(values):
        row = Row(path, f"{name}[{number}]", value)
        if not isinstance(value, dict):
            raise row.error("not a JSON object")
        yield row


def _answers(row: Row) -> list[tuple[str, int]]:
    """Texts and first characters of the answers of a question; -1 where the file gives no place."""
    values = row.value("answers")
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        answers = [(value, -1) for value in values]
    else:
        answers = []
        for answer in _members(row, "answers"):
            start = answer.value("answer_start")
            if not isinstance(start, int) or isinstance(start, bool):
                raise answer.error(
                    f"'answer_start' must be an integer, not {json.dumps(start, ensure_ascii=False)[:80]}"
                )
            answers.append((answer.text("text"), start))
    if not all(text.strip() for text, _ in answers):
        raise row.error("an answer is empty")
    return answers


def _span(context: str, answers: list[tuple[str, int]]) -> tuple[tuple[int, int] | None, bool]:
    """The characters of the first answer that stands in the context, and whether the file places it elsewhere."""
    for text, start in answers:
        place = locate(context, text, start)
        if place is not None:
            return (place, place + len(text)), start not in (place, -1)
    return None, False
