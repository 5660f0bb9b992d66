"""Indexed datasets one after the other in new files: .bin, .idx, .words and .sources by large sequential copies.

Token bytes are copied as they are, inside the kernel where the system can; lengths are copied, byte offsets and the
document index are shifted, and word boundaries are moved by bits. Memory does not grow with the datasets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from megatron.data.indexed import (
    CHUNK,
    DTYPES,
    HEADER,
    INDEX_MAGIC,
    WORDS_HEADER,
    WORDS_MAGIC,
    IndexedDataset,
    read_header,
)
from megatron.data.provenance import LINE_BITS, SOURCES_HEADER, SOURCES_MAGIC, read_sources
from megatron.errors import UserError
from megatron.files import flush_folder

COPY_BYTES = 1 << 26
"""Bytes of a piece."""
COPIES = 2
"""Pieces copied side by side: one processor copies more slowly than a disk writes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A dataset to join, and what becomes of its entries in .sources."""

    prefix: str
    file_numbers: NDArray[np.int64] | None = None
    """New number of each of its source files; None leaves them."""
    lines_before: int = 0
    """Lines of its source file before those it counts."""


def join_datasets(
    parts: Sequence[Part],
    prefix: str,
    *,
    words: bool,
    sources: bool,
    copied: Callable[[int], None] = lambda count: None,
) -> None:
    """Write PREFIX.bin, .idx and, as asked, .words and .sources; they appear when they are complete, .idx last.

    The parts must have the same dtype, and the companions asked for. `copied` is told of bytes of .bin as they are
    written. Raises `UserError` where a part is damaged or the files cannot be written.
    """
    suffixes = ["bin", *(["words"] if words else []), *(["sources"] if sources else []), "idx"]
    temporary = {suffix: Path(f"{prefix}.{suffix}.tmp-{os.getpid()}") for suffix in suffixes}
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(suffixes)) as threads:
            writing = [
                threads.submit(_write_tokens, parts, temporary["bin"], copied),
                threads.submit(_write_index, parts, temporary["idx"]),
            ]
            if words:
                writing.append(threads.submit(_write_words, parts, temporary["words"]))
            if sources:
                writing.append(threads.submit(_write_sources, parts, temporary["sources"]))
        for file in writing:
            file.result()
        # Nothing may pair new files with old ones: the old index and companions go first, the new index comes last.
        for suffix in ("idx", "words", "sources", "json"):
            Path(f"{prefix}.{suffix}").unlink(missing_ok=True)
        for suffix in suffixes:
            os.replace(temporary[suffix], f"{prefix}.{suffix}")
        flush_folder(Path(prefix).parent)
    except OSError as error:
        raise UserError(f"cannot write {prefix}.bin and the files beside it: {error.strerror or error}") from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _write_tokens(parts: Sequence[Part], path: Path, copied: Callable[[int], None]) -> None:
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(COPIES) as threads:
        for count in threads.map(partial(_copy, file.fileno()), *zip(*_pieces(parts), strict=True)):
            copied(count)
        os.fsync(file.fileno())


def _pieces(parts: Sequence[Part]) -> Iterator[tuple[Path, int, int, int]]:
    """What to copy: a file, where in it, how many bytes, and where to."""
    base = 0
    for part in parts:
        path = Path(f"{part.prefix}.bin")
        size = path.stat().st_size
        for start in range(0, size, COPY_BYTES):
            yield path, start, min(COPY_BYTES, size - start), base + start
        base += size


def _copy(target: int, path: Path, start: int, size: int, place: int) -> int:
    with open(path, "rb", buffering=0) as file:
        done = 0
        while done < size:
            count = _copy_range(file.fileno(), target, size - done, start + done, place + done)
            if count == 0:
                raise UserError(f"{path} became shorter while it was read")
            done += count
    return size


def _copy_range(source: int, target: int, size: int, source_at: int, target_at: int) -> int:
    try:
        return os.copy_file_range(source, target, size, source_at, target_at)
    except OSError:
        # Not between these file systems; a full disk says so again here.
        return os.pwrite(target, os.pread(source, min(size, 1 << 24), source_at), target_at)


def _write_index(parts: Sequence[Part], path: Path) -> None:
    """All sections of the .idx in one pass over the parts, each written at its own place."""
    headers = [read_header(Path(f"{part.prefix}.idx")) for part in parts]
    dtype_code = next(code for code, dtype in DTYPES.items() if dtype == headers[0][0])
    sentences = sum(header[1] for header in headers)
    documents = sum(header[2] - 1 for header in headers)
    lengths_at = HEADER.size
    pointers_at = lengths_at + 4 * sentences
    documents_at = pointers_at + 8 * sentences
    with open(path, "wb") as file:
        file.write(HEADER.pack(INDEX_MAGIC, 1, dtype_code, sentences, documents + 1))
        first_sentence = first_byte = 0
        for part in parts:
            dataset = IndexedDataset(part.prefix)
            file.seek(lengths_at)
            for chunk in _chunks(dataset.sizes):
                file.write(chunk.tobytes())
            file.seek(pointers_at)
            for chunk in _chunks(dataset.pointers):
                file.write((chunk + first_byte).tobytes())
            file.seek(documents_at)
            for chunk in _chunks(dataset.document_index[:-1]):
                file.write((chunk + first_sentence).tobytes())
            lengths_at += 4 * dataset.num_sentences
            pointers_at += 8 * dataset.num_sentences
            documents_at += 8 * dataset.num_documents
            first_sentence += dataset.num_sentences
            first_byte += dataset.num_tokens * dataset.dtype.itemsize
        file.seek(documents_at)
        file.write(np.array([sentences], dtype="<i8").tobytes())
        _flush(file)


def _write_words(parts: Sequence[Part], path: Path) -> None:
    """The bits of all parts without gaps: a part may begin inside a byte."""
    total = 0
    carry = np.zeros(1, dtype=np.uint8)
    with open(path, "wb") as file:
        file.write(bytes(WORDS_HEADER.size))
        for part in parts:
            dataset = IndexedDataset(part.prefix)
            assert dataset.words is not None
            left = dataset.num_tokens
            for chunk in _chunks(dataset.words):
                bits = min(left, 8 * len(chunk))
                data = np.append(chunk, np.uint8(0))
                if bits % 8:
                    data[bits // 8] &= (1 << bits % 8) - 1
                filled = total % 8
                if filled:
                    shifted = data << filled
                    shifted[1:] |= data[:-1] >> (8 - filled)
                    shifted[0] |= carry[0]
                    data = shifted
                whole = (filled + bits) // 8
                file.write(data[:whole].tobytes())
                carry = data[whole : whole + 1].copy()
                left -= bits
                total += bits
        if total % 8:
            file.write(carry.tobytes())
        file.seek(0)
        file.write(WORDS_HEADER.pack(WORDS_MAGIC, total))
        _flush(file)


def _write_sources(parts: Sequence[Part], path: Path) -> None:
    total = 0
    with open(path, "wb") as file:
        file.write(bytes(SOURCES_HEADER.size))
        for part in parts:
            sources = read_sources(part.prefix)
            assert sources is not None
            for chunk in _chunks(sources):
                entries = chunk + np.uint64(part.lines_before)
                if part.file_numbers is not None:
                    files = (entries >> np.uint64(LINE_BITS)).astype(np.int64)
                    moved = (part.file_numbers[files] - files) << LINE_BITS
                    entries = (entries.astype(np.int64) + moved).astype("<u8")
                file.write(entries.tobytes())
            total += len(sources)
        file.seek(0)
        file.write(SOURCES_HEADER.pack(SOURCES_MAGIC, total))
        _flush(file)


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
