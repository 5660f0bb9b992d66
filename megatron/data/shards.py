"""The shards of a corpus while it is preprocessed: each encoded into files of its own, with a record that it is done.

A shard's files bear a key of everything they depend on: options, input file, code. So a run that was killed goes on
with the shards that are missing, and what another input or other options made is never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.data.corpus import READ_BYTES, BadLine, parse_documents, read_range
from megatron.data.division import Shard
from megatron.data.encode import Column, Counts, encode_documents
from megatron.data.indexed import IndexedWriter
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.progress import Progress, make_progress
from megatron.data.provenance import encode_sources, write_sources
from megatron.data.segmenter import load_segmenter
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError
from megatron.files import replace_file

SHOWN_BAD_LINES = 20
LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished shard holds."""

    stop: int
    disk_bytes: int
    last: bool
    """As in `Shard`."""
    lines: int
    skipped: int
    """Malformed lines left out."""
    bad_lines: tuple[tuple[int, str], ...]
    """Number in the shard, from 1, and reason of the first `SHOWN_BAD_LINES` of them."""
    counts: tuple[Counts, ...]
    """One for each of `--json-keys`; a column without a document has no files."""


@dataclass(frozen=True, kw_only=True)
class ShardStore:
    """The folder with the shards of a run."""

    folder: Path
    file_keys: tuple[str, ...]
    """Key of each input file."""
    takes_bad_lines: bool
    """Whether a shard with malformed lines counts as done."""

    def prefix(self, shard: Shard, column: int) -> str:
        """Prefix of the indexed files of one column."""
        return f"{self._path(shard)}.{column}"

    def read(self, shard: Shard) -> Record | None:
        """The record of a shard; None where it is not done."""
        try:
            content = json.loads(self._path(shard).with_suffix(".json").read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self._path(shard)}.json: {error.strerror}") from None
        content["counts"] = tuple(Counts(**counts) for counts in content["counts"])
        content["bad_lines"] = tuple((line, reason) for line, reason in content["bad_lines"])
        record = Record(**content)
        return record if self.takes_bad_lines or record.skipped == 0 else None

    def finished(self, shard: Shard) -> Shard | None:
        """The shard at this place of the file as it was encoded; None where it is not done."""
        record = self.read(shard)
        if record is None:
            return None
        return replace(shard, stop=record.stop, disk_bytes=record.disk_bytes, last=record.last)

    def remove_stale(self) -> tuple[int, int]:
        """Remove what other inputs, options or code made, and what a killed run left. Shards kept, and removed."""
        kept = removed = 0
        for path in sorted(self.folder.iterdir()):
            name = path.name.partition(".")[0].split("-")
            ours = len(name) == 3 and name[0].isdigit() and int(name[0]) < len(self.file_keys)
            if ours and name[2] == self.file_keys[int(name[0])] and ".tmp" not in path.name:
                kept += path.suffix == ".json"
            elif path.name != LOCK:
                removed += path.suffix == ".json"
                path.unlink()
        return kept, removed

    def write(self, shard: Shard, record: Record) -> None:
        """Make a shard done."""
        try:
            replace_file(self._path(shard).with_suffix(".json"), json.dumps(asdict(record)).encode())
        except OSError as error:
            raise UserError(f"cannot write {self._path(shard)}.json: {error.strerror}") from None

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.file:06}-{shard.start:015}-{self.file_keys[shard.file]}"


def file_key(path: str, *facts: str) -> str:
    """Key of what a file becomes under `facts`: changes with its name, size or time. `UserError` if it is not there."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    content = repr((path, status.st_size, status.st_mtime_ns, facts))
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def make_shard_encoder(config: PreprocessConfig, store: ShardStore) -> Callable[[Shard], Record]:
    """A function that encodes a shard into the store, with the tokenizer and the segmenter loaded once.

    It raises `UserError` for the first malformed line unless the options skip such lines, and where a file cannot be
    read or written.
    """
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file, config.tokenizer_model)
    cut = load_segmenter(config.segmenter, config.user_dict)
    progress = make_progress(store.folder)

    def encode(texts: Sequence[str]) -> Column:
        return encode_documents(texts, tokenizer, cut, split=config.split_sentences)

    def encode_shard(shard: Shard) -> Record:
        writers: list[IndexedWriter] = []
        try:
            for i in range(len(config.json_keys)):
                writers.append(IndexedWriter(store.prefix(shard, i), tokenizer.vocab_size, words=True))
            record = _encode(shard, config, encode, writers, progress)
        finally:
            for writer in writers:
                writer.abort()
        store.write(shard, record)
        if shard.spooled is not None:
            Path(shard.spooled).unlink()
        return record

    return encode_shard


def _encode(
    shard: Shard,
    config: PreprocessConfig,
    encode: Callable[[Sequence[str]], Column],
    writers: Sequence[IndexedWriter],
    progress: Progress,
) -> Record:
    totals = [Counts() for _ in writers]
    sources: list[list[NDArray[np.uint64]]] = [[] for _ in writers]
    lines = skipped = taken = 0
    shown: list[tuple[int, str]] = []
    start, stop = (shard.start, shard.stop) if shard.spooled is None else (0, shard.stop - shard.start)
    for block in read_range(shard.path, shard.spooled or shard.path, start, stop):
        documents, numbers, bad = parse_documents(block, config.json_keys)
        if bad and not config.skip_bad_lines:
            first = BadLine(shard.path, bad[0].line + lines_before(shard), bad[0].reason)
            raise UserError(f"{first} (--skip-bad-lines leaves such lines out)")
        shown += [(line.line, line.reason) for line in bad[: SHOWN_BAD_LINES - len(shown)]]
        skipped += len(bad)
        lines += len(block.lines)
        for i, writer in enumerate(writers):
            texts = [document[i] for document in documents]
            column = encode(texts)
            writer.add(column.tokens, column.lengths, column.documents, column.word_starts)
            totals[i].add(column.counts)
            kept = np.array(numbers, dtype=np.int64)[_has_tokens(texts, column, encode)]
            sources[i].append(encode_sources(shard.file, kept))
        # Of a piece, its share of the compressed bytes.
        disk_bytes = shard.disk_bytes * block.bytes_read // max(1, stop - start)
        progress(len(documents), sum(len(line or b"") for line in block.lines), disk_bytes - taken, 0)
        taken = disk_bytes
    for writer, total, columns in zip(writers, totals, sources, strict=True):
        if total.documents:
            writer.finish()
            try:
                write_sources(Path(f"{writer.prefix}.sources"), np.concatenate(columns))
            except OSError as error:
                raise UserError(f"cannot write {writer.prefix}.sources: {error.strerror}") from None
    return Record(
        stop=shard.stop,
        disk_bytes=shard.disk_bytes,
        last=shard.last,
        lines=lines,
        skipped=skipped,
        bad_lines=tuple(shown),
        counts=tuple(totals),
    )


def lines_before(shard: Shard) -> int:
    """Lines of the input file before the shard: known of a piece, else counted (the file is read up to there)."""
    if shard.is_compressed:
        return shard.lines_before
    lines, left = 0, shard.start
    with open(shard.path, "rb", buffering=0) as file:
        while left and (data := file.read(min(left, READ_BYTES))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines


def _has_tokens(texts: Sequence[str], column: Column, encode: Callable[[Sequence[str]], Column]) -> NDArray[np.bool_]:
    """Bool [texts]: which documents the column holds. It leaves out those without a token, found among the shortest."""
    found = np.ones(len(texts), dtype=bool)
    if column.counts.documents == len(texts):
        return found
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if found.sum() == column.counts.documents:
            break
        found[i] = encode([texts[i]]).counts.documents > 0
    return found
