"""Checks of result files and their archives before they are sent: what would score zero is found offline."""

from __future__ import annotations

import difflib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from megatron.tasks.benchmark.boards import Board, Result, task_folder
from megatron.tasks.benchmark.questions import Question, find_test_file, read_questions

MAX_FILE_BYTES = 16 * 2**20
MAX_LINES = 10**6
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What a damaged or encrypted archive, or one of an unknown version, makes of its reading."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a server would not take as meant. line: from 1, None for the whole file."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """notes: a line for each file that was checked, and what could not be. findings: what is wrong."""

    notes: list[str]
    findings: list[Finding]


def validate_archive(path: Path, board: Board, data_dir: Path | None) -> Report:
    """Check an archive of result files against a server's rules and the test files in `data_dir`.

    Where a test file is absent, ids are only checked for repetition and rows against the official number. Raises
    `UserError` if the file is no zip archive, or if a test file is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise UserError(f"{path} is not a zip archive: {error}") from None
    notes: list[str] = []
    findings: list[Finding] = []
    seen: set[str] = set()
    with archive:
        for entry in archive.infolist():
            name = entry.filename
            if "/" in name or "\\" in name:
                findings.append(Finding(name, None, "in a folder: zip the files, not the folder that holds them"))
                continue
            result = board.find(name)
            if result is None:
                findings.append(Finding(name, None, _unknown_name(name, board)))
            elif name in seen:
                findings.append(Finding(name, None, "a second file of this name in the archive"))
            else:
                seen.add(name)
                content = _read(archive, entry)
                if isinstance(content, Finding):
                    findings.append(content)
                    continue
                questions, source = _questions(result, data_dir)
                found = validate_file(name, content, result, questions, source)
                findings += found
                notes.append(f"{name}: {'wrong' if found else 'right'}{'' if questions else f' ({source})'}")
    if not seen:
        findings.append(Finding(path.name, None, f"no result file of {board.name} at its root"))
    missing = [result.file for result in board.results if result.file not in seen]
    if missing and not board.splits:
        notes.append(f"not in the archive, so not scored: {', '.join(missing)}")
    return Report(notes=notes, findings=findings)


def _questions(result: Result, data_dir: Path | None) -> tuple[list[Question] | None, str]:
    """The questions that a result answers, and their file; None and the reason where it is absent."""
    folder = None if data_dir is None else task_folder(data_dir, result.task)
    path = None if folder is None else find_test_file(folder, result)
    if path is None:
        return None, f"ids not compared: there is no {' or '.join(result.test_files)} of {result.task}"
    return read_questions(path, result.form, result.id_key), str(path)


def _unknown_name(name: str, board: Board) -> str:
    names = [result.file for result in (*board.results, *board.optional)]
    stem = name.removesuffix(".json").removesuffix("_predict").removesuffix("10")
    near = [each for each in names if stem and stem in each] or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"not a name that {board.name} reads, so it would not be scored{hint}"


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | Finding:
    """The content of an entry; its own word on its size is not taken."""
    try:
        with archive.open(entry) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except UNREADABLE as error:
        return Finding(entry.filename, None, f"cannot be unpacked: {error}")
    if len(content) > MAX_FILE_BYTES:
        return Finding(entry.filename, None, f"larger than {MAX_FILE_BYTES} bytes")
    return content


def validate_file(
    name: str, content: bytes, result: Result, questions: Sequence[Question] | None, source: str
) -> list[Finding]:
    """What is wrong with a result file. questions: those of the test file `source`, None where it is absent."""
    findings = []
    if content.startswith(_BOM):
        findings.append(Finding(name, 1, "begins with a byte-order mark: write UTF-8 without BOM"))
        content = content.removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [*findings, Finding(name, line, f"not UTF-8 ({error.reason} at byte {error.start})")]
    if result.form in ("answers", "blanks"):
        return findings + _check_object(name, text, result, questions, source)
    return findings + _check_lines(name, text, result, questions, source)


def _check_lines(
    name: str, text: str, result: Result, questions: Sequence[Question] | None, source: str
) -> list[Finding]:
    lines = text.split("\n")  # no other line end of Unicode ends a line
    lines = lines if lines[-1].strip() else lines[:-1]
    if len(lines) > MAX_LINES:
        return [Finding(name, None, f"more than {MAX_LINES} lines")]
    rows = list(_rows(name, lines, result))
    broken = [row for row in rows if isinstance(row, Finding)]
    if broken:
        return _first_of(broken)
    whole = [row for row in rows if not isinstance(row, Finding)]
    ids = [str(row[result.id_key]) for row in whole]
    findings = _check_ids(name, ids, result, questions, source)
    places = {question.id: question for question in questions or ()}
    wrong = []
    for line, (id_, row) in enumerate(zip(ids, whole, strict=True), start=1):
        message = _value_problem(row[result.key], result, places.get(id_))
        if message:
            wrong.append(Finding(name, line, message))
    return findings + _first_of(wrong)


def _rows(name: str, lines: Sequence[str], result: Result) -> Iterator[dict[str, Any] | Finding]:
    """The objects of the lines, or what is wrong with them."""
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield Finding(name, number, "not JSON; one object a line" if line.strip() else "blank")
            continue
        if not isinstance(row, dict):
            yield Finding(name, number, "not a JSON object; one object a line")
            continue
        missing = [key for key in (result.id_key, result.key) if key not in row]
        if missing:
            yield Finding(name, number, f"no key {missing[0]!r}")
        elif not isinstance(row[result.id_key], (int, str)) or isinstance(row[result.id_key], bool):
            yield Finding(name, number, f"{result.id_key!r} must be an integer or a string")
        else:
            yield row


def _check_ids(
    name: str, ids: Sequence[str], result: Result, questions: Sequence[Question] | None, source: str
) -> list[Finding]:
    """Number and order of the lines' ids."""
    findings = []
    first_line: dict[str, int] = {}
    repeated = None
    for line, id_ in enumerate(ids, start=1):
        if first_line.setdefault(id_, line) != line and repeated is None:
            message = f"id {id_} again, as in line {first_line[id_]}: are ids counted within a batch?"
            repeated = Finding(name, line, message)
    if questions is None:
        if result.rows is not None and len(ids) != result.rows:
            findings.append(Finding(name, None, f"{len(ids)} lines, but the official test file has {result.rows} rows"))
        return findings + ([] if repeated is None else [repeated])
    wanted = [question.id for question in questions]
    if len(ids) != len(wanted):
        message = f"{len(ids)} lines, but {source} has {len(wanted)} rows"
        if ids == wanted[: len(ids)]:
            message += f"; the last {len(wanted) - len(ids)} are missing: was a last, smaller batch dropped?"
            return [Finding(name, None, message)]
        findings.append(Finding(name, None, message))
    differing = [n for n, (id_, other) in enumerate(zip(ids, wanted, strict=False), start=1) if id_ != other]
    if not differing:
        return findings
    line = differing[0]
    if sorted(ids) == sorted(wanted):
        message = f"from here on in another order than {source}: id {ids[line - 1]}, there {wanted[line - 1]}"
        return [*findings, Finding(name, line, message)]
    if repeated is not None and len(set(wanted)) == len(wanted):
        return [*findings, repeated]
    message = f"id {ids[line - 1]}, but row {line} of {source} has id {wanted[line - 1]}"
    return [*findings, Finding(name, line, message)]


def _check_object(
    name: str, text: str, result: Result, questions: Sequence[Question] | None, source: str
) -> list[Finding]:
    try:
        # tuples are objects, so that a name that occurs twice is not lost
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple):
        what = "text" if result.form == "answers" else "number"
        return [Finding(name, None, f"not one JSON object {{id: {what}}}: lines or a list are not read")]
    places = {question.id: question for question in questions or ()}
    seen: set[str] = set()
    problems: dict[str, list[tuple[str, str]]] = {"repeated": [], "unknown": [], "wrong": []}
    for id_, value in pairs:
        message = _value_problem(value, result, places.get(id_))
        if id_ in seen:
            problems["repeated"].append((id_, f"{id_} a second time"))
        elif questions is not None and id_ not in places:
            problems["unknown"].append((id_, f"{id_} is not an id of {source}"))
        elif message:
            problems["wrong"].append((id_, f"{id_}: {message}"))
        seen.add(id_)
    findings = [
        Finding(name, _line_of(text, several[0][0]), several[0][1] + _and_more(several))
        for several in problems.values()
        if several
    ]
    missing = [id_ for id_ in places if id_ not in seen]
    if missing:
        message = f"no answer to {len(missing)} of the {len(places)} ids of {source}, first {missing[0]}"
        findings.append(Finding(name, None, message))
    if questions is None and result.rows is not None and len(seen) != result.rows:
        findings.append(Finding(name, None, f"{len(seen)} answers, but the official test file has {result.rows}"))
    return findings


def _value_problem(value: Any, result: Result, question: Question | None) -> str:
    """What is wrong with a label or an answer; empty if nothing."""
    shown = json.dumps(value, ensure_ascii=False)[:60]
    if result.form == "labels":
        return _label_problem(value, shown, result)
    if result.form == "answers":
        return "" if isinstance(value, str) else f"the answer must be a text, not {shown}"
    if result.form == "spans":
        return _span_problem(value, result, question)
    if not isinstance(value, int) or isinstance(value, bool):
        return f"the number of the choice must be an integer, not {shown}"
    if value < 0 or (question is not None and value >= question.choices):
        limit = "" if question is None else f" (there are {question.choices}, from 0)"
        return f"there is no choice {shown}{limit}"
    return ""


def _label_problem(value: Any, shown: str, result: Result) -> str:
    labels = result.labels
    known = ", ".join(labels) if len(labels) <= 20 else f"{labels[0]} ... {labels[-1]}"
    if isinstance(value, str) and value in labels:
        return ""
    if not isinstance(value, bool) and str(value) in labels:
        return f'the label must be a string, "{value}", not {shown}'
    if isinstance(value, bool) and str(value).lower() in labels:
        return f'the label must be a string, "{shown}", not {shown}'
    number = str(value)
    if number.isascii() and number.isdigit() and len(number) < 4 and int(number) < len(labels):
        return f"{shown} is the index of a class, not a label (of {known})"
    return f"label {shown} is none of {known}"


def _span_problem(value: Any, result: Result, question: Question | None) -> str:
    """Wrong types and spans of `{type: {mention: [[first, last]]}}`; the last character is inside."""
    form = "the label must be {type: {mention: [[first, last], ...]}}"
    if not isinstance(value, dict):
        return form
    for kind, mentions in value.items():
        if kind not in result.labels:
            return f"type {kind!r} is none of {', '.join(result.labels)}"
        if not isinstance(mentions, dict):
            return form
        for mention, spans in mentions.items():
            if not isinstance(spans, list) or not spans or not all(map(_is_span, spans)):
                return form
            for first, last in spans if question is not None else ():
                assert question is not None
                if first > last or last >= len(question.text):
                    return f"span [{first}, {last}] is outside the text of {len(question.text)} characters"
                if question.text[first : last + 1] != mention:
                    inside = question.text[first : last + 1]
                    return f"span [{first}, {last}] is {inside!r}, not {mention!r}; the last character is inside"
    return ""


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(place, int) and not isinstance(place, bool) and place >= 0 for place in span)
    )


def _first_of(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for several of a kind: the first, and how many more there are."""
    return [Finding(each.file, each.line, each.message + _and_more(findings)) for each in findings[:1]]


def _and_more(several: Sequence[object]) -> str:
    return f" (and {len(several) - 1} more like it)" if len(several) > 1 else ""


def _line_of(text: str, id_: str) -> int:
    """The line in which the name of an object stands."""
    place = text.find(json.dumps(id_, ensure_ascii=False))
    return text.count("\n", 0, max(place, 0)) + 1
