"""jieba's words from C++ (`megatron._C`); dictionary and model are read from the installed package."""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Sequence

import numpy as np

from megatron._C import Jieba
from megatron.errors import UserError

STATES = "BEMS"
FIRST, LAST = 0x4E00, 0x9FD5
"""Characters that the model knows."""
NEVER = -3.14e100
"""jieba's log probability of what does not happen."""


def load_jieba(user_words: Sequence[tuple[str, int | None]] = ()) -> Jieba:
    """A segmenter with the word boundaries of the installed jieba after `add_word` of every (word, frequency).

    Raises `UserError` where jieba is not installed or its files are not those of 0.42.
    """
    try:
        finalseg = importlib.import_module("jieba.finalseg")
        dictionary = importlib.resources.files("jieba").joinpath("dict.txt").read_bytes()
    except (ImportError, OSError):
        raise UserError("--segmenter jieba needs the package jieba; install it or choose another") from None
    try:
        start = np.array([finalseg.start_P[state] for state in STATES])
        transition = np.array([[finalseg.trans_P[a].get(b, NEVER) for b in STATES] for a in STATES])
        emission = np.full((LAST - FIRST + 1, len(STATES)), NEVER)
        for column, state in enumerate(STATES):
            known = {ord(c): p for c, p in finalseg.emit_P[state].items() if FIRST <= ord(c) <= LAST}
            emission[np.fromiter(known, dtype=np.int64) - FIRST, column] = np.fromiter(known.values(), dtype=np.float64)
        return Jieba(
            dictionary=dictionary,
            user_words=list(user_words),
            start=start,
            transition=transition,
            emission=emission,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the installed jieba has other files than version 0.42 ({error}); install jieba 0.42"
        ) from None
