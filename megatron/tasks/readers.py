"""Task files to rows. Whatever is wrong in a file is a `UserError` that names the file and the line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from megatron.errors import UserError

MAX_LINE_BYTES, MAX_FILE_BYTES = 16 * 2**20, 2**30
STANDARD_INPUT = Path("-")

Bad = Callable[[UserError], None]
"""Told of a line that is wrong, which is left out unless it raises."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a task file: its values by key or column, and where they stand.

    line: its number, or the place in a file that is one JSON value, `data[0].paragraphs[2]`.
    """

    path: Path
    line: int | str
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        """A `UserError` that names this row."""
        where = self.line if isinstance(self.line, str) else f"line {self.line}"
        return UserError(f"{self.path}, {where}: {message}")

    def value(self, key: str) -> Any:
        """The value of a key. Raises `UserError` if it is missing."""
        if key not in self.values:
            raise self.error(f"no key {key!r}; the row has {', '.join(map(repr, self.values)) or 'none'}")
        return self.values[key]

    def text(self, key: str) -> str:
        """The value of a key that must be a string."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be a string, not {json.dumps(value, ensure_ascii=False)[:80]}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(f"{key!r} holds half a surrogate pair at character {error.start}") from None
        return value

    def texts(self, key: str) -> list[str]:
        """The value of a key that must be a list of strings."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key!r} must be a list of strings, not {json.dumps(value, ensure_ascii=False)[:80]}")
        return [Row(self.path, self.line, {key: item}).text(key) for item in value]

    def code(self, key: str) -> int | str:
        """The value of a key that must be a string or an integer (ids, label codes)."""
        value = self.value(key)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise self.error(
                f"{key!r} must be a string or an integer, not {json.dumps(value, ensure_ascii=False)[:80]}"
            )
        return value if isinstance(value, int) else self.text(key)


def read_content(path: Path) -> bytes:
    """A whole file, also as `.gz`. Raises `UserError` for one that cannot be read, or is larger than 1 GiB."""
    try:
        with _open(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    return content


def texts_to_predict(row: Row, names: Sequence[str], task: str) -> tuple[str, ...]:
    """The texts of a row to predict: its list "texts", as many as there are names, or the columns of these names.

    task: its name, for messages.
    """
    if "texts" not in row.values:
        return tuple(row.text(name) for name in names)
    texts = row.texts("texts")
    if len(texts) != len(names):
        raise row.error(f"{len(texts)} texts, but {task} takes {len(names)}: {', '.join(names)}")
    return tuple(texts)


def find_file(folder: Path, name: str) -> Path | None:
    """A file (or a folder of files) of a folder, itself or compressed (`.gz`), if it is there."""
    candidates = [folder / (name + ending) for ending in ("", ".gz")]
    return next((path for path in candidates if path.exists()), None)


def refuse(error: UserError) -> None:
    """Of a wrong line: the whole file is wrong."""
    raise error


def read_rows(path: Path, bad: Bad = refuse) -> Iterator[Row]:
    """The rows of a `.tsv` or `.csv` file with a header line, or of JSON lines; `.gz` of each. `-` is standard input.

    Raises `UserError` for a file that cannot be read and, unless `bad` says otherwise, for a malformed line.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".tsv":
        return read_table(path, bad=bad)
    if kind == ".csv":
        return _table(path, _csv_cells(path, bad), bad)
    return _json_lines(path, bad)


def read_table(
    path: Path,
    *,
    columns: tuple[str, ...] = (),
    others: Collection[str] = (),
    skip_short: bool = False,
    bad: Bad = refuse,
) -> Iterator[Row]:
    """The rows of tab-separated columns; quotes are characters like others.

    columns: names of the columns of a file without a header line, one whose first line has none of these names, and
    none of `others` that a header may have; the last ones may be absent. skip_short: leave out rows with fewer columns
    than there are names.
    """
    cells = ((number, line.split("\t")) for number, line in read_lines(path, bad) if line.strip())
    return _table(path, cells, bad, columns, others, skip_short=skip_short)


def read_array(path: Path) -> Iterator[tuple[int, Any]]:
    """The line on which it begins and the value of each element of the one JSON array that a file holds."""
    text = "\n".join(line for _, line in read_lines(path))
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(place: int) -> int:
        return space.match(text, place).end()  # type: ignore[union-attr]

    line, counted, place, mark = 1, 0, skip(0), "["
    while text[place : place + 1] == mark:
        place = skip(place + 1)
        line, counted = line + text.count("\n", counted, place), place
        if mark == "[" and text[place : place + 1] == "]":
            break
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: not JSON ({error})") from None
        yield line, value
        place, mark = skip(place), ","
    if text[place : place + 1] != "]" or skip(place + 1) != len(text):
        raise UserError(f"{path}, line {line + text.count(chr(10), counted, place)}: not a JSON array")


def _open(path: Path) -> AbstractContextManager[BinaryIO]:
    if path == STANDARD_INPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def read_lines(path: Path, bad: Bad = refuse) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines without their ends. Lines end at \\n alone: texts hold U+2028 and its like."""
    try:
        with _open(path) as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    bad(UserError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes"))
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(MAX_LINE_BYTES)
                    continue
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    bad(UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})"))
                    continue
                if number == 1:
                    line = line.removeprefix("\ufeff")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _json_lines(path: Path, bad: Bad) -> Iterator[Row]:
    for number, line in read_lines(path, bad):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad(UserError(f"{path}, line {number}: not JSON ({error})"))
            continue
        if not isinstance(values, dict):
            bad(UserError(f"{path}, line {number}: not a JSON object"))
            continue
        yield Row(path, number, values)


def _csv_cells(path: Path, bad: Bad) -> Iterator[tuple[int, list[str]]]:
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for number, line in read_lines(path, bad):
            consumed = number
            yield line + "\n"

    cells = csv.reader(lines(), strict=True)
    try:
        for row in cells:
            if row:
                yield consumed, row
    except csv.Error as error:
        raise UserError(f"{path}, line {consumed}: not CSV ({error})") from None


def _table(
    path: Path,
    cells: Iterator[tuple[int, list[str]]],
    bad: Bad,
    columns: tuple[str, ...] = (),
    others: Collection[str] = (),
    *,
    skip_short: bool = False,
) -> Iterator[Row]:
    header: list[str] | None = None
    headless = False
    for number, row in cells:
        if header is None:
            headless = bool(columns) and not {*columns, *others} & set(row)
            header = list(columns[: len(row)]) if headless else row
            if len(set(header)) < len(header):
                raise UserError(f"{path}, line {number}: a column name occurs twice in the header {header}")
            if not headless:
                continue
        if skip_short and len(row) < len(header):
            continue
        if len(row) != len(header):
            named = f"there should be {len(header)}" if headless else f"the header names {len(header)}"
            bad(UserError(f"{path}, line {number}: {len(row)} columns, but {named}"))
        else:
            yield Row(path, number, dict(zip(header, row, strict=True)))


def shortened(labels: Sequence[str]) -> str:
    """Labels for a message, the first and the last of many."""
    return ", ".join(labels) if len(labels) <= 20 else f"{', '.join(labels[:10])} ... {labels[-1]}"
