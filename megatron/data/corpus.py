"""Raw text files: which ones, their lines in blocks of bounded size, and the documents in a block.

A reader cuts files into blocks without looking into them; parsing is left to whoever gets the block, so that it can
be done in parallel. Where a block ends depends on the files alone.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import orjson
import zstandard
from isal import igzip, isal_zlib

from megatron.errors import UserError

FORMATS = (".jsonl", ".json", ".txt")
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = tuple(form + compression for form in FORMATS for compression in COMPRESSIONS)

BLOCK_BYTES = 1 << 18
READ_BYTES = 1 << 17
"""Bytes of one call to the system."""
LONGEST_LINE = 1 << 25
"""A longer line is malformed: one document must fit into memory many times over."""
LONGEST_DOCUMENT = 1 << 24
"""A longer document of a .txt file is cut at a line end: a file without blank lines must not fill the memory."""

TextStream = io.BufferedReader | gzip.GzipFile
UNREADABLE: tuple[type[Exception], ...] = (EOFError, OSError, isal_zlib.error, zstandard.ZstdError)  # type: ignore[assignment]
"""What reading and decompressing a file may raise."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole documents of one file."""

    path: str
    first_line: int
    """Number of the first line, from 1."""
    lines: tuple[bytes | None, ...]
    """Lines with their ends; None stands for a line longer than `LONGEST_LINE`."""
    bytes_read: int
    """Bytes of all input files, as they are on disk, read up to here."""


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used, and why."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """The files that `--input` names, in order: files, folders (searched through, by name) and globs.

    Raises `UserError` for what does not exist or holds no text, and for a file that is named twice.
    """
    paths: list[str] = []
    for item in inputs:
        if os.path.isfile(item):
            if not item.endswith(SUFFIXES):
                raise UserError(f"--input {item}: the name must end in one of {' '.join(SUFFIXES)}")
            paths.append(item)
            continue
        if os.path.isdir(item):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(item) for name in names]
        else:
            found = [path for path in glob.glob(item, recursive=True) if os.path.isfile(path)]
            if not found:
                raise UserError(f"--input {item}: no such file, folder or glob")
        found = sorted(path for path in found if _is_text(path))
        if not found:
            raise UserError(f"--input {item}: holds no file that ends in one of {' '.join(SUFFIXES)}")
        paths += found
    seen: set[str] = set()
    for path in paths:
        if os.path.realpath(path) in seen:
            raise UserError(f"--input names {path} twice; its text would count double")
        seen.add(os.path.realpath(path))
    return paths


def _is_text(path: str) -> bool:
    return path.endswith(SUFFIXES) and not os.path.basename(path).startswith(".")


def read_blocks(paths: Sequence[str], *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The lines of the files in blocks of about `block_bytes` that end where a document does.

    Raises `UserError` for a file that cannot be read or decompressed.
    """
    done = 0
    for path in paths:
        size = file_size(path)
        for block in read_range(path, path, 0, size, block_bytes=block_bytes):
            yield replace(block, bytes_read=done + block.bytes_read)
        done += size


def read_range(path: str, source: str, start: int, stop: int, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The same of the bytes [start, stop) of `source`, which holds text of the input file `path`.

    Lines count from 1 at `start`, bytes read from 0. A compressed file can be read as a whole only.
    """
    text = is_plain_text(path)
    line_number = 0
    try:
        with open_text(source, start, stop) as (stream, position):
            first_line = 1
            lines: list[bytes | None] = []
            size = 0
            for line_number, line in enumerate(_lines(stream), 1):
                lines.append(line)
                size += len(line or b"")
                ends_document = not text or (line is not None and not line.strip()) or size >= LONGEST_DOCUMENT
                if size >= block_bytes and ends_document:
                    yield Block(path=path, first_line=first_line, lines=tuple(lines), bytes_read=position())
                    first_line, lines, size = line_number + 1, [], 0
            if lines:
                yield Block(path=path, first_line=first_line, lines=tuple(lines), bytes_read=position())
    except UNREADABLE as error:
        raise unreadable(path, line_number, error) from None


def file_size(path: str) -> int:
    """Bytes on disk; raises `UserError` where there is no such file."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def unreadable(path: str, line_number: int, error: Exception) -> UserError:
    """What to tell of a file of which `line_number` lines could be read."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return UserError(f"cannot read {path}: {error.strerror or error}")
    return UserError(f"{path} is truncated or damaged after line {line_number}: {error}")


@contextmanager
def open_text(path: str, start: int, stop: int) -> Iterator[tuple[TextStream, Callable[[], int]]]:
    """The bytes [start, stop) of a file, decompressed, and a function that tells how many were taken from the disk."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        raw = _Range(file, stop - start)
        stream: TextStream = io.BufferedReader(_ZstandardReader(raw) if path.endswith(".zst") else raw, READ_BYTES)
        if path.endswith(".gz"):
            stream = igzip.GzipFile(fileobj=stream)
        yield stream, lambda: raw.position


def is_plain_text(path: str) -> bool:
    """Whether documents of a file are paragraphs; otherwise each line is a JSON object."""
    return path.endswith(tuple(".txt" + compression for compression in COMPRESSIONS))


def _lines(stream: TextStream) -> Iterator[bytes | None]:
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE)
        yield None


class _Range(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(memoryview(buffer)[: self._size - self.position])
        self.position += count
        return count


class _ZstandardReader(io.RawIOBase):
    """Frames of a .zst file one after the other. The library's own reader takes a truncated file for a whole one."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._begun = False
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                self._begun = False
            # Small pieces: a hostile file can hold 30,000 times its size.
            data = data or self._raw.read(1 << 14) or b""
            if not data:
                if self._begun:
                    raise EOFError("the last frame is not complete")
                return 0
            self._begun = True
            self._output = memoryview(self._frame.decompress(data))
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def parse_block(block: Block, keys: Sequence[str]) -> tuple[list[tuple[str, ...]], list[BadLine]]:
    """The documents of a block, each as its texts under `keys` (one text for a .txt file), and its malformed lines."""
    documents, _, bad = parse_documents(block, keys)
    return documents, bad


def parse_documents(block: Block, keys: Sequence[str]) -> tuple[list[tuple[str, ...]], list[int], list[BadLine]]:
    """`parse_block` with the number of the first line of each document between documents and malformed lines."""
    documents: list[tuple[str, ...]] = []
    numbers: list[int] = []
    bad: list[BadLine] = []
    paragraph: list[str] = []
    text = is_plain_text(block.path)
    for number, line in enumerate(block.lines, block.first_line):
        texts = None if text or line is None else _fast_texts(line, keys)
        if texts is not None:
            documents.append(texts)
            numbers.append(number)
            continue
        try:
            content = _decode(line, first=number == 1)
            if text and content:
                if not paragraph:
                    numbers.append(number)
                paragraph.append(content)
            elif text and paragraph:
                documents.append(("\n".join(paragraph),))
                paragraph = []
            elif content:
                documents.append(_texts(content, keys))
                numbers.append(number)
        except ValueError as error:
            bad.append(BadLine(block.path, number, str(error)))
    if paragraph:
        documents.append(("\n".join(paragraph),))
    return documents, numbers, bad


def _decode(line: bytes | None, *, first: bool) -> str:
    if line is None:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB; cut the document into several")
    try:
        return line.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as error:
        hint = "; the file looks like UTF-16" if first and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"not UTF-8 at byte {error.start} (0x{line[error.start]:02x}){hint}") from None


def _fast_texts(line: bytes, keys: Sequence[str]) -> tuple[str, ...] | None:
    """What `_texts` gives for a well-formed line; None for one that it must look at, if only to say what is wrong."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(record) is not dict:
        return None
    texts = []
    for key in keys:
        text = record.get(key)
        if type(text) is not str:
            return None
        texts.append(text)
    return tuple(texts)


def _texts(content: str, keys: Sequence[str]) -> tuple[str, ...]:
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}; expected one JSON object a line") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {_kind(record)}; every line must be one object")
    texts = []
    for key in keys:
        if key not in record:
            there = ", ".join(map(repr, list(record)[:8])) or "none"
            raise ValueError(f"no key {key!r} (keys: {there}); see --json-keys")
        value = record[key]
        if not isinstance(value, str):
            raise ValueError(f"the value of {key!r} is {_kind(value)}, not a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the value of {key!r} holds half a surrogate pair at character {error.start}") from None
        texts.append(value)
    return tuple(texts)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
