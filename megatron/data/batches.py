"""Batches: sample numbers in, arrays out.

A batch is a function of (seed, corpora, sample numbers): a sample's segments and masks are drawn from a counter-based
stream of its own, so workers, batch sizes, ranks and restarts change nothing in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron.config import DataConfig
from megatron.data.blend import parse_data_path
from megatron.data.indexed import IndexedDataset, check_largest_token
from megatron.data.sample_cache import SampleIndex, first_sentences
from megatron.data.samples import SPLIT_NAMES, SampleRule, open_sample_index, samples_key, split_ranges
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
OBJECTIVES = {"none": 0, "sop": 1, "nsp": 2}
"""Codes of `--sentence-objective` in csrc/assembly.h."""


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
    """[b], 0 segments in order, 1 swapped or, for next sentences, the second of another document; 0 without the binary
    head."""
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
        """The documents, as (prefix, number in the corpus), that a sample is made of, in order of its segments."""
        number, rows = self.assembler.locate(sample)
        corpus = self.corpora[number]
        sentences = first_sentences(corpus.index.rows[rows]).tolist()
        return [(corpus.prefix, bisect_right(corpus.dataset.document_index, at) - 1) for at in sentences]


def open_splits(data: DataConfig, *, seed: int, tokenizer: Tokenizer, wait_seconds: float = 1800.0) -> dict[str, Split]:
    """The splits with a share in `--split`, or with corpora of their own, among train, valid and test.

    wait_seconds: at most, for a process that builds an index. Raises `UserError` for bad paths or `--split`, files that
    are missing, damaged or made with another vocabulary, and a corpus without usable documents for a split.
    """
    if not 8 <= data.seq_length <= 65535:
        raise UserError(f"--seq-length {data.seq_length} is outside 8 to 65535")
    rule = SampleRule(
        seq_length=data.seq_length,
        binary_head=data.sentence_objective != "none",
        short_seq_prob=data.short_seq_prob,
        seed=seed,
        full_sentences=data.full_sentences,
    )
    members: dict[str, list[Corpus]] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for name, weight, dataset, places in _shares(data):
        dataset.check_card(tokenizer.vocabulary_hash)
        index = open_sample_index(dataset, name, places, rule, data.data_cache_path, wait_seconds=wait_seconds)
        check_largest_token(dataset.prefix, index.largest_token, tokenizer.vocab_size)
        members.setdefault(name, []).append(Corpus(dataset=dataset, index=index))
        weights[name] = (*weights.get(name, ()), weight)
    return {
        name: Split(
            name=name,
            corpora=tuple(members[name]),
            weights=weights[name],
            assembler=_assembler(members[name], weights[name], name, data, rule, tokenizer),
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


def _shares(data: DataConfig) -> Iterator[tuple[str, float, IndexedDataset, tuple[int, int]]]:
    """The corpora of the splits: name of the split, weight, corpus, and its part (places, see `split_ranges`)."""
    if data.data_path:
        for weight, prefix in zip(*parse_data_path(data.data_path), strict=True):
            dataset = IndexedDataset(prefix)
            for name, places in split_ranges(data.split, dataset.num_documents, prefix).items():
                yield name, weight, dataset, places
    own_paths = zip(SPLIT_NAMES, (data.train_data_path, data.valid_data_path, data.test_data_path), strict=True)
    for name, path in own_paths:
        if path:
            for weight, prefix in zip(*parse_data_path(path, f"--{name}-data-path"), strict=True):
                dataset = IndexedDataset(prefix)
                yield name, weight, dataset, (0, dataset.num_documents)


def _assembler(
    corpora: list[Corpus], weights: tuple[float, ...], name: str, data: DataConfig, rule: SampleRule,
    tokenizer: Tokenizer,
) -> _C.Assembler:  # fmt: skip
    whole_words = data.masking == "whole-word"
    vocabulary = vocabulary_table(tokenizer)
    end = data.mask_prob if data.mask_prob_end is None else data.mask_prob_end
    return _C.Assembler(
        sources=[
            (
                corpus.dataset.tokens,
                corpus.dataset.dtype_code,
                corpus.dataset.sizes,
                corpus.dataset.pointers,
                corpus.dataset.document_index,
                corpus.dataset.words if whole_words else None,
                corpus.index.rows,
                rule.targets(corpus.dataset, name),
                samples_key(corpus.dataset, name, rule.seed),
            )
            for corpus in corpora
        ],
        weights=weights,
        seq_length=data.seq_length,
        objective=OBJECTIVES[data.sentence_objective],
        # Evaluations see the same masks throughout a run.
        mask_share=(data.mask_prob, end, data.mask_prob_samples or 0) if name == "train" else (end, end, 0),
        max_ngrams=min(data.max_ngrams, data.seq_length),
        pad=tokenizer.pad_id,
        cls=tokenizer.cls_id,
        sep=tokenizer.sep_id,
        mask=tokenizer.mask_id,
        pieces=rule.pieces(),
        vocabulary=vocabulary if whole_words else vocabulary | STARTS_WORD,
        random_ids=tokenizer.random_ids,
    )


def _is_cjk(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in CJK_RANGES)
