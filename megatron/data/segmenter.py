"""Words of Chinese text, and which tokens start one (for whole-word masking, Cui et al., 2019).

Token ids stay those of the tokenizer: words only decide which tokens are masked together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.data.jieba_words import load_jieba
from megatron.data.tokenizer import Encoded
from megatron.errors import UserError
from megatron.files import read_lines

SEGMENTERS = ("none", "jieba")

Segmenter = Callable[[str], list[str]]
"""A text to its words; joined, they are the text."""


def load_segmenter(kind: str, user_dict: str | Path | None = None) -> Segmenter | None:
    """The segmenter of `--segmenter`, with the words of a jieba user dictionary; None for "none".

    "jieba" cuts exactly as that package, in C++. Raises `UserError` for an unknown kind and a bad dictionary (file and
    line).
    """
    if kind not in SEGMENTERS:
        raise UserError(f"--segmenter {kind} is unknown; there are: {', '.join(SEGMENTERS)}")
    if kind == "none":
        if user_dict is not None:
            raise UserError("--user-dict needs a segmenter; add --segmenter jieba")
        return None
    words = read_user_dict(Path(user_dict)) if user_dict is not None else []
    jieba: Segmenter = load_jieba([(word, frequency) for word, frequency, _ in words])
    return jieba


def read_user_dict(path: Path) -> list[tuple[str, int | None, str | None]]:
    """Lines "word [frequency] [tag]" of a jieba user dictionary; without a frequency the word is made to win."""
    words: list[tuple[str, int | None, str | None]] = []
    for number, line in enumerate(read_lines(path, "--user-dict"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\S+)(?:\s+([0-9]{1,9}))?(?:\s+([a-zA-Z]+))?", line.strip())
        if match is None:
            raise UserError(
                f"--user-dict {path}:{number}: expected WORD [FREQUENCY] [TAG], found {line.strip()[:60]!r}"
            )
        word, frequency, tag = match.groups()
        words.append((word, int(frequency) if frequency else None, tag))
    return words


def word_starts(words: Sequence[str]) -> list[int]:
    """First character of each word; white space belongs to the word after it, as it does in SentencePiece tokens."""
    starts: list[int] = []
    position = 0
    after_space = False
    for word in words:
        if not after_space:
            starts.append(position)
        after_space = word.isspace()
        position += len(word)
    return starts


def align(
    texts: Sequence[str],
    encoded: Sequence[Encoded],
    segmenter: Segmenter | None,
    continues_word: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which tokens start a word, for all tokens of the texts in order; shape [tokens].

    A token starts a word if its first character stands in another word than that of the token before it. Comparing
    words, not positions, also places a word right whose first character the tokenizer drops. Tokens that
    `continues_word` marks never start one; without a segmenter all others do.
    """
    ids = np.fromiter((i for text_ids, _ in encoded for i in text_ids), dtype=np.int64)
    starts = ~continues_word[ids]
    if segmenter is None or not len(ids):
        return starts
    boundaries: list[int] = []
    firsts: list[int] = []
    base = 0
    for text, (_, offsets) in zip(texts, encoded, strict=True):
        words = segmenter(text)
        if sum(map(len, words)) != len(text):
            raise RuntimeError(f"the segmenter lost characters of {text[:60]!r}")
        boundaries += [base + start for start in word_starts(words)]
        firsts += [base + begin for begin, _ in offsets]
        base += len(text)
    word = np.searchsorted(np.array(boundaries), np.array(firsts), side="right")
    starts[1:] &= word[1:] != word[:-1]
    return starts
