"""Samples of a corpus: which documents belong to a split, and which run of sentences is which sample.

A *piece* is a sentence, or a slice of one that is longer than a sample. The sample index lists the runs of pieces that
make one epoch; it is built in C++, cached under a name made from all it depends on, and mapped. Its order is that of
the documents: the shuffle of each epoch is a keyed permutation computed when a sample is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from megatron.data.indexed import HEADER, IndexedDataset
from megatron.errors import UserError
from megatron.native import _C

SPLIT_NAMES = ("train", "valid", "test")
SHORTEST_TARGET = 8
"""Tokens of the shortest sample that `--short-seq-prob` makes: less leaves next to nothing to predict."""
ROW = np.dtype([("sentence", "<i8"), ("offset", "<u4"), ("pieces", "<u2"), ("target", "<u2")])
CACHE_HEADER = struct.Struct("<8sQQQQQ")  # magic, rows, documents, short documents, largest token, checksum
CACHE_MAGIC = b"MSAMPLE\x01"


@dataclass(frozen=True, kw_only=True)
class SampleRule:
    """What decides how documents are cut into samples."""

    seq_length: int
    """Tokens of a sample, special tokens included."""
    binary_head: bool
    """Samples have two segments (sentence order prediction), so at least two pieces."""
    short_seq_prob: float
    """Share of samples with a length drawn uniformly up to the full one."""
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of a sample without [CLS] and [SEP]s; a longer sentence is cut into slices."""
        return self.seq_length - (3 if self.binary_head else 2)

    @property
    def slice(self) -> int:
        """Tokens of a slice: half a sample with two segments, so that two slices fill it."""
        return (self.longest + 1) // 2 if self.binary_head else self.longest

    @property
    def min_pieces(self) -> int:
        return 2 if self.binary_head else 1

    def pieces(self) -> _C.PieceRule:
        return _C.PieceRule(longest=self.longest, slice=self.slice, fewest=self.min_pieces)


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """The samples of one epoch over one split of a corpus."""

    rows: np.ndarray
    """ROW [samples]: first sentence, token offset in it, number of pieces, tokens to keep."""
    documents: int
    """Documents of the split."""
    short_documents: int
    """Documents of the split with too few pieces for a sample, which are skipped."""
    largest_token: int
    """Largest token id of the whole corpus."""


def stream_key(*parts: str | int) -> int:
    """A 64-bit key that names a stream of random numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def corpus_key(dataset: IndexedDataset) -> int:
    """A 64-bit key of a corpus from its contents: the same on every machine, whatever the file's name and time."""
    sizes, documents = dataset.sizes, dataset.document_index
    ends = (sizes[:4096], sizes[-4096:], documents[:4096], documents[-4096:])
    content = b"".join(np.ascontiguousarray(part).tobytes() for part in ends)
    counts = (dataset.num_tokens, dataset.num_sentences, dataset.num_documents)
    return stream_key("corpus", *counts, hashlib.sha256(content).hexdigest())


def split_ranges(split: str, documents: int, prefix: str) -> dict[str, tuple[int, int]]:
    """Places [first, last) in the permuted documents of each split with a share in `--split` (such as "969,30,1").

    Every such split gets at least one document. Raises `UserError` for a bad `--split`, or too few documents.
    """
    try:
        shares = [Fraction(part.strip()) for part in split.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not 1 <= len(shares) <= 3 or min(shares) < 0 or sum(shares) == 0:
        raise UserError(f"--split {split}: give the shares of training, validation and test, such as 969,30,1")
    wanted = [(name, share / sum(shares)) for name, share in zip(SPLIT_NAMES, shares, strict=False) if share > 0]
    sizes = [max(1, int(share * documents)) for _, share in wanted]
    # What rounding left over, or took too much, belongs to the largest split.
    sizes[sizes.index(max(sizes))] += documents - sum(sizes)
    if min(sizes) < 1:
        raise UserError(
            f"{prefix} has {documents} documents, too few for the {len(wanted)} splits of --split {split}: "
            "give more text, or fewer splits (--split 100,0,0 trains on everything)"
        )
    ends = np.cumsum(sizes).tolist()
    return {name: (end - size, end) for (name, _), size, end in zip(wanted, sizes, ends, strict=True)}


def open_sample_index(
    dataset: IndexedDataset, name: str, split_range: tuple[int, int], rule: SampleRule, cache_path: str | None
) -> SampleIndex:
    """The sample index of the split called `name`, from the cache or built and put there.

    The cache is `cache_path`, or a folder cache/ beside the corpus; where that cannot be written, the index stays in
    memory. Any number of processes may do this at once: each writes the same bytes and renames. A damaged or truncated
    file is built again. Raises `UserError` if there is no sample, or `cache_path` cannot be written.
    """
    key = corpus_key(dataset)
    folder = Path(cache_path) if cache_path is not None else Path(dataset.prefix).parent / "cache"
    identity = stream_key(
        "sample index", CACHE_MAGIC.hex(), key, _file_identity(dataset), *split_range, rule.longest, rule.slice,
        rule.min_pieces, repr(rule.short_seq_prob), rule.seed, name,
    )  # fmt: skip
    path = folder / f"{Path(dataset.prefix).name}-{name}-{identity:016x}.samples"
    index = _read(path)
    if index is None:
        index = _build(dataset, name, split_range, rule, key)
        try:
            _write(path, index)
        except OSError as error:
            if cache_path is not None:
                raise UserError(f"--data-cache-path {cache_path} cannot be written: {error.strerror}") from None
        else:
            index = _read(path) or index  # the mapped file is shared by the processes of a machine
    if len(index.rows) == 0:
        raise UserError(_no_samples(dataset, name, index, rule))
    return index


def samples_key(dataset: IndexedDataset, name: str, seed: int) -> int:
    """Key of the random numbers of a split's samples: shuffles, swaps, masks."""
    return stream_key("samples", seed, corpus_key(dataset), name)


def _build(dataset: IndexedDataset, name: str, split_range: tuple[int, int], rule: SampleRule, key: int) -> SampleIndex:
    # The assignment of documents to splits does not depend on the seed: no run trains on what another one tests on.
    pairs, documents, short_documents = _C.sample_index(
        sizes=dataset.sizes,
        document_index=dataset.document_index,
        split_range=split_range,
        split_key=stream_key("split"),
        pieces=rule.pieces(),
        targets=(min(SHORTEST_TARGET, rule.longest), rule.longest),
        short_probability=rule.short_seq_prob,
        key=stream_key("targets", rule.seed, key, name),
    )
    return SampleIndex(
        rows=pairs.view(ROW),
        documents=documents,
        short_documents=short_documents,
        largest_token=dataset.largest_token,
    )


def _file_identity(dataset: IndexedDataset) -> str:
    """What changes when the files of a corpus are replaced: sizes, times and the header of the index."""
    stats = [os.stat(f"{dataset.prefix}.{part}") for part in ("idx", "bin")]
    with open(f"{dataset.prefix}.idx", "rb") as file:
        header = file.read(HEADER.size)
    return repr([(stat.st_size, stat.st_mtime_ns) for stat in stats] + [header])


def _counts(index: SampleIndex) -> tuple[int, int, int, int]:
    return len(index.rows), index.documents, index.short_documents, index.largest_token


def _checksum(index: SampleIndex) -> int:
    return int(_C.checksum(index.rows)) ^ stream_key(*_counts(index))


def _read(path: Path) -> SampleIndex | None:
    """The cached index, or None if there is none that is whole."""
    try:
        with path.open("rb") as file:
            magic, rows, documents, short, largest, checksum = CACHE_HEADER.unpack(file.read(CACHE_HEADER.size))
            whole = magic == CACHE_MAGIC and os.fstat(file.fileno()).st_size == CACHE_HEADER.size + ROW.itemsize * rows
            if not whole:
                return None
            data = np.zeros(0, ROW) if rows == 0 else np.memmap(file, ROW, "r", CACHE_HEADER.size, (rows,))
    except (OSError, struct.error):
        return None
    index = SampleIndex(rows=data, documents=documents, short_documents=short, largest_token=largest)
    return index if _checksum(index) == checksum else None


def _write(path: Path, index: SampleIndex) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(CACHE_HEADER.pack(CACHE_MAGIC, *_counts(index), _checksum(index)))
            file.write(index.rows.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _no_samples(dataset: IndexedDataset, name: str, index: SampleIndex, rule: SampleRule) -> str:
    if rule.binary_head:
        return (
            f"{dataset.prefix}: none of the {index.documents} documents of the {name} split has two sentences, which "
            "sentence order prediction needs: preprocess with --split-sentences, give --bert-no-binary-head, "
            "or more text"
        )
    return f"{dataset.prefix}: the {index.documents} documents of the {name} split hold no text; give more text"
