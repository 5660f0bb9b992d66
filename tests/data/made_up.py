"""Made-up corpora whose every token tells where it stands, and a vocabulary for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.config import DataConfig
from megatron.data.batches import Batch, Split, open_splits
from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.tokenizer import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
FIRST = len(SPECIALS)
"""Token t of the corpus, counted over the whole file, has id FIRST + t."""


def vocabulary(vocab_size: int, tokens: Sequence[str] | None = None) -> Tokenizer:
    """A vocabulary of made-up tokens; it cannot encode text."""
    tokens = (*SPECIALS, *(tokens or (f"t{i}" for i in range(FIRST, vocab_size))))
    assert len(tokens) == vocab_size
    return Tokenizer(
        kind="BertWordPieceCase",
        tokens=tuple(tokens),
        pad_id=PAD,
        unk_id=UNK,
        cls_id=CLS,
        sep_id=SEP,
        mask_id=MASK,
        random_ids=np.arange(FIRST, vocab_size, dtype=np.int32),
        encode_batch=lambda texts: [],
    )


def write_corpus(
    prefix: Path, documents: Sequence[Sequence[int]], word_starts: np.ndarray | None = None
) -> IndexedDataset:
    """A corpus of documents given as the lengths of their sentences."""
    lengths = np.array([length for document in documents for length in document], dtype=np.int64)
    total = int(lengths.sum())
    writer = IndexedWriter(str(prefix), FIRST + total, words=word_starts is not None)
    writer.add(np.arange(FIRST, FIRST + total), lengths, np.array([len(d) for d in documents]), word_starts)
    writer.finish()
    return IndexedDataset(str(prefix))


def random_documents(rng: np.random.Generator, documents: int, sentences: int = 8, tokens: int = 30) -> list[list[int]]:
    """Lengths of the sentences of some documents: 1 to `sentences` of 1 to `tokens` tokens."""
    return [rng.integers(1, tokens + 1, rng.integers(1, sentences + 1)).tolist() for _ in range(documents)]


def open_made_up(
    prefix: Path | str, *, vocab_size: int | None = None, tokenizer: Tokenizer | None = None, seed: int = 1, **data: Any
) -> dict[str, Split]:
    """The splits of a made-up corpus; `data` are options of DataConfig."""
    if tokenizer is None:
        tokenizer = vocabulary(vocab_size or IndexedDataset(str(prefix)).num_tokens + FIRST)
    options = {"data_path": (str(prefix),), "split": "100,0,0", "seq_length": 64} | data
    return open_splits(DataConfig(**options), seed=seed, tokenizer=tokenizer)


def restored(batch: Batch) -> np.ndarray:
    """The tokens [b, s] with the labels put back."""
    tokens = batch.tokens.copy().reshape(-1)
    tokens[batch.masked_positions] = batch.masked_labels
    return tokens.reshape(batch.tokens.shape)


def segments_of(row: np.ndarray, length: int) -> list[np.ndarray]:
    """The segments between the special tokens of a restored row."""
    ends = np.flatnonzero(row[:length] == SEP)
    return [row[begin + 1 : end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
