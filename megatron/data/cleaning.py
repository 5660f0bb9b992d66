"""What cleaning does to one document: its characters, whether it is Chinese, and lines that many documents share."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

from megatron.data.duplicates import hash_texts
from megatron.errors import UserError

KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)

_HAN = regex.compile(r"\p{Han}")
_SPACE = regex.compile(r"\s")


@dataclass(kw_only=True)
class Removed:
    """What cleaning took out of a part of a corpus; the parts are summed."""

    not_chinese_documents: int = 0
    """Below `--min-chinese-share`."""
    duplicate_documents: int = 0
    near_duplicate_documents: int = 0
    boilerplate_lines: int = 0

    def add(self, other: Removed) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


def make_character_cleaner(normalize: Literal["none", "nfc", "nfkc"], simplify: bool) -> Callable[[str], str]:
    """A function that brings a text into a Unicode normal form (Annex 15), then into simplified characters.

    Raises `UserError` if OpenCC is needed and not installed.
    """
    if simplify:
        try:
            import opencc
        except ImportError:
            raise UserError("--simplify needs the package opencc: pip install opencc") from None
        convert = opencc.OpenCC("t2s").convert

    def clean(text: str) -> str:
        if normalize == "nfc":
            text = unicodedata.normalize("NFC", text)
        elif normalize == "nfkc":
            text = unicodedata.normalize("NFKC", text)
        return convert(text) if simplify else text

    return clean


def chinese_share(text: str) -> float:
    """Share of Chinese characters among those that are no white space; 1 for a text without any."""
    length = len(text) - len(_SPACE.findall(text))
    return len(_HAN.findall(text)) / length if length else 1.0


def lines_of(text: str) -> list[str]:
    """The lines of a document that boilerplate is looked for in: without white space around them and empty ones."""
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def hash_lines(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes of the lines of each document, every line once, uint64 [lines]."""
    return hash_texts([line for text in texts for line in set(lines_of(text))])[:, 0]


def remove_lines(text: str, boilerplate: frozenset[int]) -> tuple[str, int]:
    """A document without the lines whose hashes are given, and how many were removed."""
    lines = lines_of(text)
    hashes = hash_texts(lines)[:, 0].tolist()
    kept = [line for line, value in zip(lines, hashes, strict=True) if value not in boilerplate]
    return (text, 0) if len(kept) == len(lines) else ("\n".join(kept), len(lines) - len(kept))


def clean_documents(
    texts: Sequence[str],
    clean: Callable[[str], str],
    *,
    min_chinese_share: float,
    decisions: NDArray[np.uint8],
    boilerplate: frozenset[int],
) -> tuple[list[str], NDArray[np.bool_], Removed]:
    """The documents that stay, as they stay; bool [texts], which ones they are; and what was removed.

    `clean` and `boilerplate` are of `make_character_cleaner` and `remove_lines`; `decisions` uint8 [texts], or [0] if
    none were made, of `KEPT`, `DUPLICATE`, `NEAR_DUPLICATE`.
    """
    cleaned = [clean(text) for text in texts]
    kept = np.ones(len(texts), dtype=bool)
    removed = Removed()
    if min_chinese_share > 0:
        kept = np.array([chinese_share(text) >= min_chinese_share for text in cleaned], dtype=bool)
        removed.not_chinese_documents = int((~kept).sum())
    if len(decisions):
        removed.duplicate_documents = int((decisions == DUPLICATE).sum())
        removed.near_duplicate_documents = int((decisions == NEAR_DUPLICATE).sum())
        kept &= decisions == KEPT
    cleaned = [text for text, keep in zip(cleaned, kept, strict=True) if keep]
    if boilerplate:
        for i, text in enumerate(cleaned):
            cleaned[i], lines = remove_lines(text, boilerplate)
            removed.boilerplate_lines += lines
    return cleaned, kept, removed
