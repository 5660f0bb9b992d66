"""A corpus divided into shards, by the files alone: never by the number of workers.

A plain file is divided into byte ranges that end where a document does. A small compressed file is a shard of its own.
A large one can be read from its beginning only, so one reader lays its text down in pieces on the disk (the spool),
and the pieces are the shards. So all workers share one file of any size.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron.data.corpus import (
    LONGEST_DOCUMENT,
    READ_BYTES,
    UNREADABLE,
    TextStream,
    file_size,
    is_plain_text,
    open_text,
    unreadable,
)
from megatron.errors import UserError

SMALLEST_SHARD, LARGEST_SHARD = 1 << 25, 1 << 28
"""Bytes. Smaller ones cost more in files than in text; of a larger one too much is lost when a worker is killed."""
SHARDS = 1 << 10
"""Wanted number of shards, between these bounds: work for many workers, few files in a folder."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of one input file."""

    file: int
    """Number of the input file."""
    path: str
    """The input file."""
    start: int
    stop: int
    """Bytes [start, stop) of the file; of its text, if it is a piece of a compressed file."""
    disk_bytes: int
    """Bytes of the file as it is on disk."""
    spooled: str | None = None
    """The file with the text of a piece."""
    lines_before: int = 0
    """Lines before a piece."""
    last: bool = True
    """Nothing of the file comes after a piece."""

    @property
    def is_compressed(self) -> bool:
        return self.path.endswith((".gz", ".zst"))


def shard_bytes(paths: Sequence[str]) -> int:
    """Bytes of a shard of a corpus of these files: a power of two."""
    total = sum(file_size(path) for path in paths)
    return min(LARGEST_SHARD, max(SMALLEST_SHARD, 1 << (total // SHARDS).bit_length()))


def divide(paths: Sequence[str], size: int) -> list[Shard]:
    """The shards of the files, in order, of about `size` bytes; compressed files are not divided yet.

    Raises `UserError` for a file that cannot be read.
    """
    shards: list[Shard] = []
    for file, path in enumerate(paths):
        length = file_size(path)
        whole = Shard(file=file, path=path, start=0, stop=length, disk_bytes=length)
        if whole.is_compressed:
            shards.append(whole)
            continue
        try:
            ends = [*_document_ends(path, length, size), length]
        except OSError as error:
            raise unreadable(path, 0, error) from None
        for start, stop in zip([0, *ends], ends, strict=False):
            shards.append(replace(whole, start=start, stop=stop, disk_bytes=stop - start))
    return shards


def part_of(shards: Sequence[Shard], part: int, parts: int) -> list[Shard]:
    """Shards of part number `part` (from 1) of `parts`: runs of about equal bytes, none of them empty.

    Raises `UserError` if there are fewer shards than parts.
    """
    if parts > len(shards):
        raise UserError(
            f"--shard {part}/{parts}: the input divides into {len(shards)} parts at most (files of "
            f"{SMALLEST_SHARD >> 20} MiB and more are divided, compressed ones are not): give --shard I/{len(shards)}"
        )
    ends = np.cumsum([shard.disk_bytes for shard in shards])
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts, side="right")
    for i in range(parts - 1):
        cuts[i] = min(max(cuts[i], i + 1, cuts[i - 1] + 1 if i else 0), len(shards) - parts + 1 + i)
    bounds = [0, *cuts.tolist(), len(shards)]
    return list(shards[bounds[part - 1] : bounds[part]])


def is_large(shard: Shard, size: int) -> bool:
    """Whether a shard is a compressed file that `spool` divides."""
    return shard.is_compressed and shard.disk_bytes > size


def spool(shard: Shard, size: int, folder: Path, finished: Callable[[Shard], Shard | None]) -> Iterator[Shard]:
    """The pieces of a large compressed file, of about `size` bytes of text, each written to `folder` as it is wanted.

    `finished` gives a piece as it was encoded before, by its `start`, or None. Such a piece is not written again, and a
    file of which all is done is not read. Raises `UserError` where the file cannot be read or the spool cannot be
    written.
    """
    done: list[Shard] = []
    while (piece := finished(replace(shard, start=done[-1].stop if done else 0))) is not None:
        done.append(piece)
        if piece.last:
            yield from done
            return
    lines = stop = taken = 0
    try:
        with open_text(shard.path, 0, shard.disk_bytes) as (stream, position):
            last = False
            while not last:
                piece = replace(shard, start=stop, stop=0, lines_before=lines)
                spooled = folder / f"{shard.file:06}-{stop:015}.text" if finished(piece) is None else None
                chunks = _documents(stream, size, text=is_plain_text(shard.path))
                for chunk in _written(chunks, spooled):
                    stop += len(chunk)
                    lines += chunk.count(b"\n")
                last = not stream.peek(1)
                yield replace(
                    piece,
                    stop=stop,
                    disk_bytes=position() - taken,
                    spooled=None if spooled is None else str(spooled),
                    last=last,
                )
                taken = position()
    except UNREADABLE as error:
        raise unreadable(shard.path, lines, error) from None


def _documents(stream: TextStream, size: int, *, text: bool) -> Iterator[bytes]:
    """The next `size` bytes of a stream, and what follows up to the end of a document."""
    while size > 0 and (chunk := stream.read(min(size, READ_BYTES))):
        size -= len(chunk)
        yield chunk
    yield from _rest_of_line(stream) if size <= 0 and not chunk.endswith(b"\n") else ()
    yield from _rest_of_paragraph(stream) if text else ()


def _written(chunks: Iterator[bytes], path: Path | None) -> Iterator[bytes]:
    """The chunks, each after it was written to a file, if one is given."""
    if path is None:
        yield from chunks
        return
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    with file:
        for chunk in chunks:
            try:
                if file.write(chunk) < len(chunk):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}") from None
            yield chunk


def _document_ends(path: str, length: int, size: int) -> Iterator[int]:
    """Places in a plain file, some `size` bytes apart, where a document ends, without that of the file."""
    text = is_plain_text(path)
    with open(path, "rb") as file:
        place = size
        while place < length:
            place -= 1  # the line end may be just before it
            file.seek(place)
            place += sum(map(len, _rest_of_line(file)))
            place += sum(map(len, _rest_of_paragraph(file))) if text else 0
            if place < length:
                yield place
            place += size


def _rest_of_line(stream: TextStream) -> Iterator[bytes]:
    while line := stream.readline(READ_BYTES):
        yield line
        if line.endswith(b"\n"):
            return


def _rest_of_paragraph(stream: TextStream) -> Iterator[bytes]:
    """Lines up to a blank one; at most `LONGEST_DOCUMENT` bytes, as a reader would cut a file without blank lines."""
    size = 0
    while size < LONGEST_DOCUMENT:
        blank = True
        for line in _rest_of_line(stream):
            yield line
            size += len(line)
            blank = blank and not line.strip()
        if blank:
            return
