"""What follows from the survey of a corpus: which documents each shard leaves out, and which lines are boilerplate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron.data.cleaning import DUPLICATE, KEPT, NEAR_DUPLICATE
from megatron.data.division import Shard
from megatron.data.duplicates import PERMUTATIONS, find_duplicates, find_near_duplicates
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.shard_store import ShardStore
from megatron.errors import UserError


def decide(config: PreprocessConfig, survey: ShardStore, shards: Sequence[Shard], column: int) -> None:
    """Decide over the documents of one column, in order of the shards, and leave the decisions in the survey.

    Memory: 40 bytes a document, and 16 bytes for each line that repeats in a shard; signatures stay on the disk.
    """
    prefixes = [survey.prefix(shard, column) for shard in shards]
    try:
        compared = [np.load(f"{prefix}.compared.npy") for prefix in prefixes]
        numbers = [int(part.sum()) for part in compared]
        found = np.full(sum(numbers), KEPT, dtype=np.uint8)
        if config.drop_near_duplicates is not None:
            rows = _one_array(
                f"{survey.folder}/signatures.{column}", [f"{prefix}.signatures.npy" for prefix in prefixes]
            )
            found[find_near_duplicates(rows, config.drop_near_duplicates)] = NEAR_DUPLICATE
        if config.drop_duplicates:
            hashes = np.concatenate([np.load(f"{prefix}.hashes.npy") for prefix in prefixes])
            found[find_duplicates(hashes)] = DUPLICATE
        for prefix, part, begin in zip(prefixes, compared, np.cumsum([0, *numbers[:-1]]), strict=True):
            decisions = np.full(len(part), KEPT, dtype=np.uint8)
            decisions[part] = found[begin : begin + part.sum()]
            np.save(f"{prefix}.decisions.npy", decisions)
        if config.drop_boilerplate is not None:
            lines = np.concatenate([np.load(f"{prefix}.lines.npy") for prefix in prefixes], axis=1)
            values, inverse = np.unique(lines[0], return_inverse=True)
            counts = np.bincount(inverse, weights=lines[1], minlength=len(values))
            np.save(survey.folder / f"boilerplate.{column}.npy", values[counts >= config.drop_boilerplate])
    except OSError as error:
        raise UserError(f"cannot write {survey.folder}: {error.strerror}") from None


def load_decisions(survey: ShardStore | None, shard: Shard, column: int) -> NDArray[np.uint8]:
    """Uint8 [documents of the shard]; empty where there was no survey."""
    if survey is None:
        return np.zeros(0, dtype=np.uint8)
    decisions: NDArray[np.uint8] = np.load(f"{survey.prefix(shard, column)}.decisions.npy")
    return decisions


def load_boilerplate(survey: ShardStore | None, column: int) -> frozenset[int]:
    """Hashes of the lines to remove."""
    if survey is None or not (survey.folder / f"boilerplate.{column}.npy").exists():
        return frozenset()
    return frozenset(np.load(survey.folder / f"boilerplate.{column}.npy").tolist())


def _one_array(path: str, parts: Sequence[str]) -> NDArray[np.uint32]:
    """The signatures of all shards, mapped from one file."""
    with open(path, "wb") as file:
        for part in parts:
            file.write(np.load(part).tobytes())
        size = file.tell()
    if size == 0:
        return np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    return np.memmap(path, mode="r", dtype=np.uint32).reshape(-1, PERMUTATIONS)
