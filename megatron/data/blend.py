"""Blending of corpora by weights: `--data-path WEIGHT PREFIX WEIGHT PREFIX ...`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron.errors import UserError
from megatron.native import _C


def parse_data_path(data_path: Sequence[str], flag: str = "--data-path") -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Weights, scaled to sum to one, and prefixes of `--data-path` (or `flag`): one prefix, or pairs of both.

    Raises `UserError` for anything else, weights that are not positive numbers, and a prefix that comes twice (both
    would give the same samples at the same time).
    """
    if not data_path:
        raise UserError(f"{flag} is empty: give PREFIX, or WEIGHT PREFIX WEIGHT PREFIX ...")
    if len(data_path) == 1:
        return (1.0,), (data_path[0],)
    if len(data_path) % 2:
        raise UserError(f"{flag} has {len(data_path)} parts: give one PREFIX, or WEIGHT PREFIX WEIGHT PREFIX ...")
    weights, prefixes = [_weight(text, flag) for text in data_path[0::2]], tuple(data_path[1::2])
    seen: set[str] = set()
    for prefix in prefixes:
        if os.path.realpath(prefix) in seen:
            raise UserError(f"{flag} names {prefix} twice: give it once, with the sum of its weights")
        seen.add(os.path.realpath(prefix))
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights), prefixes


def blend(weights: Sequence[float], first: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Which corpus, int32 [count], and which of its samples, int64 [count], are samples first .. first + count - 1.

    Megatron-LM's rule: sample k comes from the corpus with the largest `weight * max(k, 1) - taken`, ties to the first,
    so over every prefix no corpus runs ahead of its share by a whole sample. `weights` sum to one.
    """
    return _C.Blend(list(weights)).assign(first, count)


def _weight(text: str, flag: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise UserError(
            f"{flag}: {text!r} stands where a weight is expected: give WEIGHT PREFIX WEIGHT PREFIX ..."
        ) from None
    if not (0 < weight < math.inf):
        raise UserError(f"{flag}: weight {text} is not positive: leave a corpus out instead")
    return weight
