"""The file of a sample index: a header, then the rows; written in blocks, checked as a whole, mapped.

The header (little-endian) is 8 bytes magic and uint64 rows, documents, short documents, largest token, seal. The seal
is a checksum of the rows mixed with a hash of the counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.native import _C

ROW = np.dtype([("sentence_low", "<u4"), ("offset", "<u4"), ("sentence_high", "<u2"), ("pieces", "<u2")])
HEADER = struct.Struct("<8sQQQQQ")
MAGIC = b"MSAMPLE\x02"
CHUNK = 1 << 20
"""Rows handled at once."""

Block = tuple[np.ndarray, int, int]
"""ROW [samples] of some documents, how many of these are in the split, and how many of those have too few pieces."""


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """The samples of one epoch over one split of a corpus."""

    rows: np.ndarray
    """ROW [samples]: first sentence (48 bits), token offset in it, number of pieces."""
    documents: int
    """Documents of the split."""
    short_documents: int
    """Documents of the split with too few pieces for a sample, which are skipped."""
    largest_token: int
    """Largest token id of the whole corpus."""


def first_sentences(rows: np.ndarray) -> NDArray[np.int64]:
    """The number of each row's first sentence, [rows]."""
    return (rows["sentence_high"].astype(np.int64) << 32) | rows["sentence_low"]


def index_of_blocks(blocks: Iterable[Block], largest_token: int) -> SampleIndex:
    """The index in memory."""
    parts = list(blocks)
    return SampleIndex(
        rows=np.concatenate([rows for rows, _, _ in parts]),
        documents=sum(documents for _, documents, _ in parts),
        short_documents=sum(short for _, _, short in parts),
        largest_token=largest_token,
    )


def write_index(path: Path, blocks: Iterable[Block], largest_token: int) -> None:
    """Write the file block by block under a temporary name, which becomes `path` when it is whole.

    Raises `OSError` where it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(HEADER.size))
            count = documents = short_documents = checksum = 0
            for rows, of_split, short in blocks:
                file.write(rows.view(np.uint8).data)
                checksum += _C.checksum(rows, count)
                count, documents, short_documents = count + len(rows), documents + of_split, short_documents + short
            counts = (count, documents, short_documents, largest_token)
            file.seek(0)
            file.write(HEADER.pack(MAGIC, *counts, _seal(counts, checksum)))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_index(path: Path) -> SampleIndex | None:
    """The index with its rows mapped, or None if there is none that is whole."""
    try:
        with path.open("rb") as file:
            magic, count, *others, seal = HEADER.unpack(file.read(HEADER.size))
            if magic != MAGIC or os.fstat(file.fileno()).st_size != HEADER.size + ROW.itemsize * count:
                return None
            # Read, not mapped: the pages need not stay in this process.
            checksum = sum(_C.checksum(rows, first) for first, rows in _chunks(file.fileno(), count))
            if seal != _seal((count, *others), checksum):
                return None
            rows = np.zeros(0, ROW) if count == 0 else np.memmap(file, ROW, "r", HEADER.size, (count,))
    except (OSError, struct.error):
        return None
    documents, short_documents, largest_token = others
    return SampleIndex(rows=rows, documents=documents, short_documents=short_documents, largest_token=largest_token)


def _chunks(descriptor: int, count: int) -> Iterable[tuple[int, np.ndarray]]:
    """The number of the first row and the rows of each part of a file, in one buffer."""
    buffer = np.empty(min(count, CHUNK), ROW)
    for first in range(0, count, CHUNK):
        rows = buffer[: min(CHUNK, count - first)]
        if os.preadv(descriptor, [rows.data], HEADER.size + ROW.itemsize * first) != rows.nbytes:
            raise OSError("the file became shorter")
        yield first, rows


def _seal(counts: tuple[int, ...], checksum: int) -> int:
    digest = hashlib.sha256(struct.pack("<4Q", *counts)).digest()
    return (checksum ^ int.from_bytes(digest[:8], "little")) % 2**64
