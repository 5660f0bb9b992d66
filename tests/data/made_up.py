"""Made-up corpora whose every token tells where it stands, and a vocabulary for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
