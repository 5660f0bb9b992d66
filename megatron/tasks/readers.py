"""Task files to rows. Whatever is wrong in a file is a `UserError` that names the file and the line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError

MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a task file: its values by key or column, and where they stand."""

    path: Path
    line: int
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        """A `UserError` that names this row."""
        return UserError(f"{self.path}, line {self.line}: {message}")

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
        return value

    def texts(self, key: str) -> list[str]:
        """The value of a key that must be a list of strings."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key!r} must be a list of strings, not {json.dumps(value, ensure_ascii=False)[:80]}")
        return value

    def code(self, key: str) -> int | str:
        """The value of a key that must be a string or an integer (ids, label codes)."""
        value = self.value(key)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise self.error(
                f"{key!r} must be a string or an integer, not {json.dumps(value, ensure_ascii=False)[:80]}"
            )
        return value


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a folder, itself or compressed (`.gz`), if it is there."""
    candidates = [folder / (name + ending) for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a `.tsv` or `.csv` file with a header line, or of a file of JSON lines; `.gz` of each.

    Raises `UserError` for a file that cannot be read and for a malformed line.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".tsv":
        return read_table(path)
    if kind == ".csv":
        return _table(path, _csv_cells(path))
    return _json_lines(path)


def read_table(path: Path, *, columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """The rows of tab-separated columns; quotes are characters like others.

    columns: names of the columns of a file without a header line, one whose first line has none of these names; the
    last ones may be absent.
    """
    cells = ((number, line.split("\t")) for number, line in _lines(path) if line.strip())
    return _table(path, cells, columns)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines without their ends. Lines end at \\n alone: texts hold U+2028 and its like."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise UserError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})"
                    ) from None
                if number == 1:
                    line = line.removeprefix("\ufeff")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        yield Row(path, number, values)


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for number, line in _lines(path):
            consumed = number
            yield line + "\n"

    cells = csv.reader(lines(), strict=True)
    try:
        for row in cells:
            if row:
                yield consumed, row
    except csv.Error as error:
        raise UserError(f"{path}, line {consumed}: not CSV ({error})") from None


def _table(path: Path, cells: Iterator[tuple[int, list[str]]], columns: tuple[str, ...] = ()) -> Iterator[Row]:
    header: list[str] | None = None
    for number, row in cells:
        if header is None:
            headless = bool(columns) and not set(columns) & set(row)
            header = list(columns[: len(row)]) if headless else row
            if len(set(header)) < len(header):
                raise UserError(f"{path}, line {number}: a column name occurs twice in the header {header}")
            if not headless:
                continue
        if len(row) != len(header):
            named = "the columns are" if header == list(columns[: len(header)]) else "the header names"
            raise UserError(f"{path}, line {number}: {len(row)} columns, but {named} {len(header)}")
        yield Row(path, number, dict(zip(header, row, strict=True)))


def shortened(labels: Sequence[str]) -> str:
    """Labels for a message, the first and the last of many."""
    return ", ".join(labels) if len(labels) <= 20 else f"{', '.join(labels[:10])} ... {labels[-1]}"
