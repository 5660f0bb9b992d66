"""Where the documents of a dataset come from: `PREFIX.sources`, with the names of the files in the data card.

PREFIX.sources (little-endian) holds 8 bytes magic, uint64 number of documents, and a uint64 for each document: the
number of its file in the list "files" of the card, times 2^40, plus the number of its (first) line, from 1.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.errors import UserError
from megatron.files import durable_file

SOURCES_MAGIC = b"MSOURCE\x01"
SOURCES_HEADER = struct.Struct("<8sQ")
LINE_BITS = 40


def source_of(prefix: str, document: int) -> tuple[str, int]:
    """File and line (from 1) that a document of a dataset was made of, as its preprocessing was given them.

    Raises `UserError` where the dataset has no such document, or the companion files are missing or do not fit.
    """
    sources = read_sources(prefix)
    if sources is None:
        raise UserError(
            f"{prefix}.sources does not exist: the dataset was made without a record of where its documents come from; "
            "preprocess it again with tools/preprocess_data.py"
        )
    if not 0 <= document < len(sources):
        raise UserError(f"{prefix} has no document {document}: it has {len(sources)}, counted from 0")
    file, line = divmod(int(sources[document]), 1 << LINE_BITS)
    files = source_files(prefix)
    if file >= len(files):
        raise UserError(f"{prefix}.sources names file {file}, but {prefix}.json lists {len(files)} files")
    return files[file], line


def source_files(prefix: str) -> list[str]:
    """The list "files" of the data card; raises `UserError` where it cannot be had."""
    card = Path(f"{prefix}.json")
    try:
        files = json.loads(card.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "no list of files" if isinstance(error, (KeyError, TypeError)) else error
        raise UserError(f"cannot read the source files of {prefix} from {card}: {reason}") from None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise UserError(f"cannot read the source files of {prefix} from {card}: no list of files")
    return files


def encode_sources(file: int, lines: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The entries of documents that begin at `lines` (int64 [documents], from 1) of file number `file`."""
    return (lines + (file << LINE_BITS)).astype("<u8")


def write_sources(path: Path, sources: NDArray[np.uint64]) -> None:
    """A whole .sources file of `sources`, uint64 [documents]; `OSError` where it cannot be written."""
    with durable_file(path) as file:
        file.write(SOURCES_HEADER.pack(SOURCES_MAGIC, len(sources)))
        file.write(sources.astype("<u8").tobytes())


def read_sources(prefix: str) -> NDArray[np.uint64] | None:
    """The entries of a dataset, uint64 [documents], mapped from its .sources; None where it has none.

    Raises `UserError` for a file that is truncated or none of this kind.
    """
    path = Path(f"{prefix}.sources")
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(SOURCES_HEADER.size)
    if len(header) < SOURCES_HEADER.size or not header.startswith(SOURCES_MAGIC):
        raise UserError(f"{path} is no record of sources: preprocess the corpus again")
    count = SOURCES_HEADER.unpack(header)[1]
    if size != SOURCES_HEADER.size + 8 * count:
        raise UserError(f"{path} is damaged: {size} bytes do not hold {count} documents; preprocess the corpus again")
    if count == 0:
        return np.zeros(0, dtype="<u8")
    return np.memmap(path, mode="r", dtype="<u8", offset=SOURCES_HEADER.size, shape=(count,))
