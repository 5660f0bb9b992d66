"""Which rows stand in which batch: rows of like length together, so that little is padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WINDOW_BATCHES = 50


def training_batches(lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch as row numbers, int64 [batch_size]; the last rows may make a shorter batch.

    A pure function of its arguments: rows are shuffled, windows of 50 batches sorted by length (so a batch holds rows
    of like length, yet other ones each epoch), and the batches shuffled. Every row occurs once. Steps in which all
    rows are alike train as well as mixed ones as long as their order is random (bucketing, as in tensor2tensor).
    """
    order = _permutation(len(lengths), seed, epoch, 0)
    window = WINDOW_BATCHES * batch_size
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    sorted_rows = [rows[np.argsort(lengths[rows], kind="stable")] for rows in windows]
    batches = [rows[start : start + batch_size] for rows in sorted_rows for start in range(0, len(rows), batch_size)]
    return [batches[place] for place in _permutation(len(batches), seed, epoch, 1)]


def evaluation_batches(lengths: np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """All rows in batches of like length, longest first, so that what does not fit into memory shows at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded_width(longest: int, *, multiple: int = 1) -> int:
    """The tokens to which a batch is padded: a few more than its longest input, so that few widths occur.

    At most 16 between a power of two and the next. oneDNN prepares each product anew for each shape, which costs 1 ms
    and 0.6 MiB: with every width from 30 to 128 a training was a third slower and had three times the memory.
    multiple: of what the width must be a multiple.
    """
    step = 1 << max(0, max(longest - 1, 0).bit_length() - 5)
    step = math.lcm(step, multiple)
    return -(-longest // step) * step


def padding_ratio(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Padded over real tokens of batches."""
    padded = sum(len(rows) * padded_width(int(lengths[rows].max())) for rows in batches)
    return padded / int(sum(lengths[rows].sum() for rows in batches))


def _permutation(count: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """A permutation from raw random bits: unlike `Generator.permutation`, numpy keeps those for all versions."""
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch, purpose))).random_raw(count)
    return np.argsort(bits, kind="stable")
