"""Duplicate documents by hashes, near-duplicates by MinHash; of two the one that comes first stays.

Near-duplicates: the signature of a document is the minimum of 128 hashes over its runs of five characters (Broder,
1997). Signatures are cut into bands; documents that agree in a band are compared by the share of equal places, an
estimate of the Jaccard similarity of their runs (Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron.errors import UserError

PERMUTATIONS = 128
SHINGLE = 5
"""Characters of a run."""
RECALL = 0.95
"""Least chance that two documents at the threshold agree in a band."""
SEED = 1
_MULTIPLIER = 0x9E3779B97F4A7C15
COMPARED = 1 << 14
"""Pairs compared at once."""


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """128-bit hashes of texts, uint64 [texts, 2]."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(digests, dtype="<u8").reshape(len(texts), 2)


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures, uint32 [texts, PERMUTATIONS]; white space does not count. `UserError` without rensa."""
    try:
        import rensa
    except ImportError:
        raise UserError("--drop-near-duplicates needs the package rensa: pip install rensa") from None
    dense = ["".join(text.split()) for text in texts]
    # A text shorter than a run is one.
    padded = [text.ljust(SHINGLE, "\0") for text in dense]
    characters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashes = np.zeros(max(0, len(characters) - SHINGLE + 1), dtype=np.uint64)
    for i in range(SHINGLE):
        hashes = (hashes + characters[i : i + len(hashes)]) * np.uint64(_MULTIPLIER)
    # A run does not reach into the next text.
    ends = np.cumsum([len(text) for text in padded], dtype=np.int64)
    own = np.ones(len(hashes), dtype=bool)
    for i in range(1, SHINGLE):
        own[ends[:-1] - i] = False
    offsets = np.concatenate([[0], np.cumsum([len(text) - SHINGLE + 1 for text in padded])]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes[own], offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


def find_duplicates(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Bool [documents]: True for each that an earlier one is equal to; `hashes` uint64 [documents, 2]."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable, so the first of equal ones comes first
    ordered = hashes[order]
    again = np.zeros(len(hashes), dtype=bool)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return again


def find_near_duplicates(rows: NDArray[np.uint32], threshold: float) -> NDArray[np.bool_]:
    """Bool [documents]: True for each that is as similar as `threshold` to the first document it shares a band with.

    `rows` are signatures, uint32 [documents, PERMUTATIONS].
    """
    found = np.zeros(len(rows), dtype=bool)
    bands, width = _bands(threshold)
    for band in range(bands):
        key = np.zeros(len(rows), dtype=np.uint64)
        for column in range(band * width, (band + 1) * width):
            key = (key + rows[:, column]) * np.uint64(_MULTIPLIER)
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        begins = np.concatenate([[True], key[order[1:]] != key[order[:-1]]])
        first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        for start in range(0, len(order), COMPARED):
            later, earlier = order[start : start + COMPARED], first[start : start + COMPARED]
            pairs = (later != earlier) & ~found[later]
            later, earlier = later[pairs], earlier[pairs]
            found[later] |= (rows[later] == rows[earlier]).mean(axis=1) >= threshold
    return found


def _bands(threshold: float) -> tuple[int, int]:
    """Number and width of bands: the widest (fewest false pairs) that find a pair at the threshold well enough."""
    widths = [w for w in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**w) ** (PERMUTATIONS // w) >= RECALL]
    width = max(widths, default=1)
    return PERMUTATIONS // width, width
