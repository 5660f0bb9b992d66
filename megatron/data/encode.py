"""Documents, or lines of JSON, to token ids, word starts and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron._C import Jieba, TextEncoder
from megatron.data.corpus import Block, is_plain_text
from megatron.data.segmenter import Segmenter, align
from megatron.data.text import sentence_rules, split_sentences
from megatron.data.tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from megatron._C import EncodedTexts


@dataclass(kw_only=True)
class Counts:
    """What is in a part of a corpus; the parts are summed."""

    documents: int = 0
    empty_documents: int = 0
    """Documents without a token; they are left out."""
    sentences: int = 0
    tokens: int = 0
    characters: int = 0
    text_bytes: int = 0
    unknown_tokens: int = 0
    words: int = 0
    multi_character_words: int = 0

    def add(self, other: Counts) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass(frozen=True, kw_only=True)
class Column:
    """Documents under one key: ids, word starts [tokens], tokens of sentences, sentences of documents.

    Sentences without a token are left out; a document without a token has 0 sentences.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    documents: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Text to columns, with the tokenizer and the segmenter loaded once.

    texts: of documents under one key. lines: of the lines of a block, a column a key; None where they are not all
    usual JSON, or the tokenizer is not one of those in C++: then they must be parsed first.
    """

    texts: Callable[[Sequence[str]], Column]
    lines: Callable[[Block], list[Column] | None]


def make_encoder(
    tokenizer: Tokenizer, segmenter: Segmenter | None, *, split: bool, keys: Sequence[str] = ()
) -> Encoder:
    """The fastest encoder there is for a tokenizer and a segmenter."""
    compiled = compiled_encoder(tokenizer, segmenter, split=split)
    if compiled is None:
        return Encoder(
            texts=lambda documents: encode_documents(documents, tokenizer, segmenter, split=split),
            lines=lambda block: None,
        )

    def lines(block: Block) -> list[Column] | None:
        encoded = None if is_plain_text(block.path) else compiled.encode_lines(block.lines, keys)
        return None if encoded is None else [to_column(column) for column in encoded]

    return Encoder(texts=lambda documents: to_column(compiled.encode(documents)), lines=lines)


def compiled_encoder(tokenizer: Tokenizer, segmenter: Segmenter | None, *, split: bool) -> TextEncoder | None:
    """`encode_documents` in C++, for WordPiece with jieba's words or none; None for others."""
    if tokenizer.wordpiece is None or not (segmenter is None or isinstance(segmenter, Jieba)):
        return None
    return TextEncoder(wordpiece=tokenizer.wordpiece, jieba=segmenter, rules=sentence_rules() if split else None)


def to_column(encoded: EncodedTexts) -> Column:
    """What C++ gives for the documents under one key."""
    tokens, lengths, documents, starts, counts = encoded
    return Column(tokens=tokens, lengths=lengths, documents=documents, word_starts=starts, counts=Counts(**counts))


def encode_documents(
    documents: Sequence[str], tokenizer: Tokenizer, segmenter: Segmenter | None, *, split: bool
) -> Column:
    """Tokens and word starts of documents.

    For any tokenizer and segmenter, in Python: it says what `compiled_encoder` must give.
    """
    split_documents = [split_sentences(text) if split else [text] for text in documents]
    sentences = [sentence for parts in split_documents for sentence in parts]
    encoded = tokenizer.encode_batch(sentences)
    starts = align(sentences, encoded, segmenter, tokenizer.continues_word)
    tokens = np.fromiter((i for ids, _ in encoded for i in ids), dtype=np.int32, count=len(starts))
    lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int32)

    parts_of = np.array([len(parts) for parts in split_documents], dtype=np.int64)
    document_of = np.repeat(np.arange(len(documents)), parts_of)
    used = np.bincount(document_of[lengths > 0], minlength=len(documents))
    words, long_words = _count_words(encoded, starts)
    counts = Counts(
        documents=int((used > 0).sum()),
        empty_documents=int((used == 0).sum()),
        sentences=int((lengths > 0).sum()),
        tokens=len(tokens),
        characters=sum(map(len, documents)),
        text_bytes=sum(len(text.encode()) for text in documents),
        unknown_tokens=int((tokens == tokenizer.unk_id).sum()),
        words=words,
        multi_character_words=long_words,
    )
    return Column(
        tokens=tokens,
        lengths=lengths[lengths > 0],
        documents=used.astype(np.int64),
        word_starts=starts,
        counts=counts,
    )


def _count_words(encoded: Sequence[Encoded], starts: NDArray[np.bool_]) -> tuple[int, int]:
    """Number of words, and of those with more than one character."""
    if not starts.any():
        return 0, 0
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(starts)) - 1
    offsets = np.array([offset for _, text_offsets in encoded for offset in text_offsets], dtype=np.int64)
    return len(first), int((offsets[last, 1] - offsets[first, 0] > 1).sum())
