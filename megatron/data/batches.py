"""Batches: sample numbers in, arrays out.

A batch is a function of (seed, corpora, sample numbers): a sample's segments and masks are drawn from a counter-based
stream of its own, so workers, batch sizes, ranks and restarts change nothing in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron.data.blend import parse_data_path
from megatron.data.indexed import IndexedDataset, check_largest_token
from megatron.data.samples import SPLIT_NAMES, SampleIndex, SampleRule, open_sample_index, samples_key, split_ranges
from megatron.errors import UserError
from megatron.native import _C

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

CJK_RANGES = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""What BERT's tokenizer takes for a Chinese character."""
STARTS_WORD = np.int32(-(2**31))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one forward pass; b samples, s columns, m masked tokens."""

    tokens: NDArray[np.int64]
    """[b, s], filled up with [PAD]."""
    token_types: NDArray[np.int64]
    """[b, s], 0 for [CLS] A [SEP] and padding, 1 for B [SEP]."""
    lengths: NDArray[np.int64]
    """[b], tokens without padding."""
    masked_positions: NDArray[np.int64]
    """[m], row * s + column, ascending."""
    masked_labels: NDArray[np.int64]
    """[m], the tokens that stood there."""
    sop_labels: NDArray[np.int64]
    """[b], 0 segments in order, 1 swapped; all 0 without the binary head."""
    samples: NDArray[np.int64]
    """[b], number within the split; seeds dropout and names samples in reports."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus of a split: its files and its samples."""

    dataset: IndexedDataset
    index: SampleIndex

    @property
    def prefix(self) -> str:
        return self.dataset.prefix


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training, validation or test samples: an endless blend of shuffled epochs over each corpus."""

    name: str
    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]
    """Share of each corpus in the samples; they sum to one."""
    assembler: _C.Assembler

    def assemble(self, first: int, count: int) -> Batch:
        """Samples first .. first + count - 1. May be called from several threads; works without the GIL.

        Raises `UserError` if the files changed under the run.
        """
        try:
            tokens, token_types, lengths, positions, labels, sop_labels = self.assembler.assemble(first, count)
        except RuntimeError as error:
            prefixes = ", ".join(corpus.prefix for corpus in self.corpora)
            raise UserError(f"{prefixes} changed while in use or is damaged: {error}; preprocess again") from error
        return Batch(
            tokens=tokens,
            token_types=token_types,
            lengths=lengths,
            masked_positions=positions,
            masked_labels=labels,
            sop_labels=sop_labels,
            samples=np.arange(first, first + count),
        )

    @property
    def samples_per_epoch(self) -> tuple[int, ...]:
        """Samples of one epoch of each corpus."""
        return tuple(len(corpus.index.rows) for corpus in self.corpora)

    def epochs(self, count: int) -> tuple[float, ...]:
        """Epochs over each corpus that the first `count` samples make."""
        taken = self.assembler.taken(count)
        return tuple(number / epoch for number, epoch in zip(taken, self.samples_per_epoch, strict=True))

    def describe(self) -> list[str]:
        """One line of text for each corpus."""
        lines = []
        for corpus, weight in zip(self.corpora, self.weights, strict=True):
            index = corpus.index
            skipped = f" ({index.short_documents} of them skipped: too few sentences)" if index.short_documents else ""
            lines.append(
                f"{self.name}: {corpus.prefix}: weight {weight:.4g}, {index.documents} documents{skipped}, "
                f"{len(index.rows)} samples an epoch"
            )
        return lines

    def documents_of(self, sample: int) -> list[tuple[str, int]]:
        """The documents, as (prefix, number in the corpus), that a sample is made of."""
        number, row = self.assembler.locate(sample)
        corpus = self.corpora[number]
        sentence = corpus.index.rows["sentence"][row]
        return [(corpus.prefix, int(np.searchsorted(corpus.dataset.document_index, sentence, side="right")) - 1)]


def open_splits(
    *,
    data_path: tuple[str, ...],
    split: str,
    seq_length: int,
    mask_prob: float,
    short_seq_prob: float,
    max_ngrams: int,
    binary_head: bool,
    seed: int,
    tokenizer: Tokenizer,
    cache_path: str | None,
) -> dict[str, Split]:
    """The splits with a share in `--split`, among train, valid and test.

    Raises `UserError` for a bad `--data-path` or `--split`, files that are missing, damaged or made with another
    vocabulary, and a corpus without usable documents for a split.
    """
    if not 8 <= seq_length <= 65535:
        raise UserError(f"--seq-length {seq_length} is outside 8 to 65535")
    weights, prefixes = parse_data_path(data_path)
    rule = SampleRule(seq_length=seq_length, binary_head=binary_head, short_seq_prob=short_seq_prob, seed=seed)
    vocabulary = vocabulary_table(tokenizer)
    members: dict[str, list[Corpus]] = {}
    for prefix in prefixes:
        dataset = IndexedDataset(prefix)
        dataset.check_card(tokenizer.vocabulary_hash)
        for name, split_range in split_ranges(split, dataset.num_documents, prefix).items():
            index = open_sample_index(dataset, name, split_range, rule, cache_path)
            check_largest_token(prefix, index.largest_token, tokenizer.vocab_size)
            members.setdefault(name, []).append(Corpus(dataset=dataset, index=index))
    return {
        name: Split(
            name=name,
            corpora=tuple(members[name]),
            weights=weights,
            assembler=_C.Assembler(
                sources=[_source(corpus, samples_key(corpus.dataset, name, seed)) for corpus in members[name]],
                weights=weights,
                seq_length=seq_length,
                binary_head=binary_head,
                mask_prob=mask_prob,
                max_ngrams=min(max_ngrams, seq_length),
                pad=tokenizer.pad_id,
                cls=tokenizer.cls_id,
                sep=tokenizer.sep_id,
                mask=tokenizer.mask_id,
                pieces=rule.pieces(),
                vocabulary=vocabulary,
                random_ids=tokenizer.random_ids,
            ),
        )
        for name in SPLIT_NAMES
        if name in members
    }


def vocabulary_table(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """For each id [vocab_size] the id to train on, with the sign bit set where the token starts a word.

    Corpora made for whole-word masking elsewhere mark the inner characters of Chinese words as `##X`: they become X
    again, as the exported model's tokenizer never gives `##X`.
    """
    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}
    table = np.arange(tokenizer.vocab_size, dtype=np.int32)
    for number, token in enumerate(tokenizer.tokens):
        if len(token) == 3 and token.startswith("##") and token[2] in numbers and _is_cjk(token[2]):
            table[number] = numbers[token[2]]
    table[~tokenizer.continues_word] |= STARTS_WORD
    return table


def step_batches(
    split: Split,
    *,
    global_batch_size: Callable[[int], int],
    consumed: int,
    micro_batch_size: int,
    rank: int,
    size: int,
    num_workers: int,
) -> Iterator[list[Batch]]:
    """The micro-batches of each step for one of `size` data-parallel ranks, without end.

    A step's global batch is the `global_batch_size(consumed)` samples that follow; each rank has a contiguous part.
    `num_workers` threads assemble ahead, in order; 0 assembles when asked. What fails there is raised here.
    """
    plan = _step_plan(global_batch_size, consumed, micro_batch_size, rank, size)
    if num_workers == 0:
        return ([split.assemble(first, count) for first, count in parts] for parts in plan)
    return _assemble_ahead(split, plan, num_workers)


def evaluation_batches(split: Split, *, samples: int, micro_batch_size: int, rank: int, size: int) -> Iterator[Batch]:
    """This rank's part of the first `samples` samples, the same each time; the last batch may be short."""
    for first, count in _rank_parts(0, samples, micro_batch_size, rank, size):
        yield split.assemble(first, count)


def _step_plan(
    global_batch_size: Callable[[int], int], consumed: int, micro_batch_size: int, rank: int, size: int
) -> Iterator[list[tuple[int, int]]]:
    while True:
        samples = global_batch_size(consumed)
        yield _rank_parts(consumed, samples, micro_batch_size, rank, size)
        consumed += samples


def _assemble_ahead(split: Split, plan: Iterator[list[tuple[int, int]]], num_workers: int) -> Iterator[list[Batch]]:
    pool = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="batches")
    try:
        waiting: deque[list[Future[Batch]]] = deque()
        while True:
            while len(waiting) <= num_workers:
                waiting.append([pool.submit(split.assemble, first, count) for first, count in next(plan)])
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _rank_parts(first: int, samples: int, micro_batch_size: int, rank: int, size: int) -> list[tuple[int, int]]:
    """(first, count) of the micro-batches of one rank's contiguous part of `samples` samples."""
    begin, end = first + samples * rank // size, first + samples * (rank + 1) // size
    return [(at, min(micro_batch_size, end - at)) for at in range(begin, end, micro_batch_size)]


def _source(
    corpus: Corpus, key: int
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, int]:
    dataset = corpus.dataset
    return (
        dataset.tokens, dataset.dtype_code, dataset.sizes, dataset.pointers, dataset.words, corpus.index.rows, key,
    )  # fmt: skip


def _is_cjk(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in CJK_RANGES)
