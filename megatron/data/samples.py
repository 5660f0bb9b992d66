"""Samples of a corpus: which documents belong to a split, and which run of sentences is which sample.

A *piece* is a sentence, or a slice of one that is longer than a sample. The sample index lists the runs of pieces that
make one epoch; it is built in C++, cached under a name made from all it depends on, and mapped. Its order is that of
the documents: the shuffle of each epoch is a keyed permutation computed when a sample is asked for.
"""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from megatron.data.indexed import HEADER, IndexedDataset
from megatron.data.lock import one_maker
from megatron.data.sample_cache import MAGIC, ROW, Block, SampleIndex, index_of_blocks, read_index, write_index
from megatron.errors import UserError
from megatron.native import _C

SPLIT_NAMES = ("train", "valid", "test")
SHORTEST_TARGET = 8
"""Tokens of the shortest sample that `--short-seq-prob` makes: less leaves next to nothing to predict."""
BLOCK_SENTENCES = 1 << 20
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class SampleRule:
    """What decides how documents are cut into samples."""

    seq_length: int
    """Tokens of a sample, special tokens included."""
    binary_head: bool
    """Samples have two segments, so at least two pieces."""
    short_seq_prob: float
    """Share of samples with a length drawn uniformly up to the full one."""
    seed: int
    full_sentences: bool = False
    """A sample ends before the sentence that does not fit, so that none is cut; without the binary head."""

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
        return _C.PieceRule(
            longest=self.longest, slice=self.slice, fewest=self.min_pieces, full_sentences=self.full_sentences
        )

    def targets(self, dataset: IndexedDataset, split: str) -> _C.TargetRule:
        """The tokens that each sample of a split aims at, by the sentence and offset where it starts."""
        return _C.TargetRule(
            longest=self.longest,
            shortest=min(SHORTEST_TARGET, self.longest),
            short_probability=self.short_seq_prob,
            key=stream_key("targets", self.seed, corpus_key(dataset), split),
        )


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
    dataset: IndexedDataset,
    name: str,
    split_range: tuple[int, int],
    rule: SampleRule,
    cache_path: str | None,
    *,
    wait_seconds: float,
) -> SampleIndex:
    """The sample index of the split called `name`, from the cache or built and put there.

    The cache is `cache_path`, or a folder cache/ beside the corpus; where that cannot be written, the index stays in
    memory. Of any number of processes that want it, one builds and the others wait for it, at most `wait_seconds`. A
    damaged or truncated file is built again. Raises `UserError` if there is no sample, `cache_path` cannot be written,
    or the wait is too long.
    """
    folder = Path(cache_path) if cache_path is not None else Path(dataset.prefix).parent / "cache"
    identity = stream_key(
        "sample index", MAGIC.hex(), corpus_key(dataset), _file_identity(dataset), *split_range, rule.longest,
        rule.slice, rule.min_pieces, rule.full_sentences, repr(rule.short_seq_prob), rule.seed, name,
    )  # fmt: skip
    path = folder / f"{Path(dataset.prefix).name}-{name}-{identity:016x}.samples"
    index = read_index(path)
    if index is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with one_maker(path, limit=wait_seconds) as ours:
                if ours and read_index(path) is None:
                    path.unlink(missing_ok=True)  # damaged: those who wait must not take it for the new one
                    write_index(path, _blocks(dataset, name, split_range, rule), dataset.largest_token)
        except OSError as error:
            if cache_path is not None:
                raise UserError(f"--data-cache-path {cache_path} cannot be written: {error.strerror}") from None
        index = read_index(path) or index_of_blocks(_blocks(dataset, name, split_range, rule), dataset.largest_token)
    if len(index.rows) == 0:
        raise UserError(_no_samples(dataset, name, index, rule))
    return index


def samples_key(dataset: IndexedDataset, name: str, seed: int) -> int:
    """Key of the random numbers of a split's samples: shuffles, swaps, masks."""
    return stream_key("samples", seed, corpus_key(dataset), name)


def _blocks(dataset: IndexedDataset, name: str, split_range: tuple[int, int], rule: SampleRule) -> Iterator[Block]:
    """The index in blocks of documents, with progress."""
    documents = dataset.document_index
    targets = rule.targets(dataset, name)
    started = shown = time.monotonic()
    first = 0
    while first < dataset.num_documents:
        last = max(first + 1, bisect_right(documents, documents[first] + BLOCK_SENTENCES) - 1)
        # The assignment of documents to splits does not depend on the seed: no run trains on what another one tests on.
        rows, of_split, short = _C.sample_index(
            sizes=dataset.sizes,
            document_index=documents,
            documents=(first, last),
            split_range=split_range,
            split_key=stream_key("split"),
            pieces=rule.pieces(),
            targets=targets,
        )
        yield rows.view(ROW), of_split, short
        first = last
        now = time.monotonic()
        if now - shown > PROGRESS_SECONDS:
            shown = now
            print(_progress(dataset, name, int(documents[last]), now - started), flush=True)


def _progress(dataset: IndexedDataset, name: str, sentences: int, seconds: float) -> str:
    rate = sentences / seconds
    left = int((dataset.num_sentences - sentences) / rate)
    return (
        f"sample index of {dataset.prefix}, {name}: {sentences:,} of {dataset.num_sentences:,} sentences | "
        f"{rate:,.0f} sentences/s | ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    )


def _file_identity(dataset: IndexedDataset) -> str:
    """What changes when the files of a corpus are replaced: sizes, times and the header of the index."""
    stats = [os.stat(f"{dataset.prefix}.{part}") for part in ("idx", "bin")]
    with open(f"{dataset.prefix}.idx", "rb") as file:
        header = file.read(HEADER.size)
    return repr([(stat.st_size, stat.st_mtime_ns) for stat in stats] + [header])


def _no_samples(dataset: IndexedDataset, name: str, index: SampleIndex, rule: SampleRule) -> str:
    if rule.binary_head:
        return (
            f"{dataset.prefix}: none of the {index.documents} documents of the {name} split has two sentences, which "
            "sentence order and next sentence prediction need: preprocess with --split-sentences, give "
            "--bert-no-binary-head, or more text"
        )
    return f"{dataset.prefix}: the {index.documents} documents of the {name} split hold no text; give more text"
