"""Batches: every row once, of like length, and nothing but the seed and the epoch decides."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.tasks.batching import evaluation_batches, padded_width, padding_ratio, training_batches
from megatron.tasks.encode import Encoded


@given(st.lists(st.integers(2, 128), min_size=1, max_size=400), st.integers(1, 20), st.integers(0, 5))
def test_every_row_once_and_batch_size_kept(sizes: list[int], batch_size: int, epoch: int) -> None:
    lengths = np.array(sizes)
    for batches in (
        training_batches(lengths, batch_size=batch_size, seed=1, epoch=epoch),
        evaluation_batches(lengths, batch_size=batch_size),
    ):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
        assert padding_ratio(lengths, batches) >= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 1000)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_batches(lengths, batch_size=16, seed=seed, epoch=epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_order_does_not_follow_the_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 4000)
    means = [lengths[rows].mean() for rows in training_batches(lengths, batch_size=16, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@given(st.integers(1, 1000), st.sampled_from([1, 2, 3, 8]))
def test_a_width_is_a_few_tokens_more(longest: int, multiple: int) -> None:
    width = padded_width(longest, multiple=multiple)
    assert longest <= width < longest * (1 + multiple / 16) + multiple and width % multiple == 0


def test_few_widths_occur() -> None:
    assert [padded_width(longest) for longest in (0, 1, 31, 33, 63, 65, 129, 257, 500)] == [
        0, 1, 31, 34, 64, 68, 136, 272, 512
    ]  # fmt: skip
    assert len({padded_width(longest) for longest in range(1, 513)}) == 32 + 4 * 16


def test_a_batch_is_not_wider_than_the_longest_of_all_rows() -> None:
    """Position embeddings may end there."""
    lengths = np.array([50, 66, 67])
    offsets = np.concatenate([[0], lengths.cumsum()])
    labels, tokens = np.zeros(3, np.int64), np.arange(lengths.sum())
    encoded = Encoded(tokens=tokens, offsets=offsets, first_lengths=lengths, labels=labels, pad_id=0, truncated=0)
    assert encoded.batch(np.array([0, 1])).tokens.shape == (2, 67)
    assert encoded.batch(np.array([0, 1]), multiple=4).tokens.shape == (2, 68)
    assert encoded.batch(np.array([0])).tokens.shape == (1, 50)


def test_padding_ratio_counts() -> None:
    lengths = np.array([4, 2, 3, 3])
    assert padding_ratio(lengths, [np.array([0, 1]), np.array([2, 3])]) == pytest.approx((8 + 6) / 12)


@pytest.mark.parametrize("batch_size", [16, 32, 64])
def test_padding_on_tnews(shared_data: Path, batch_size: int) -> None:
    path = shared_data / "tasks" / "TNEWS" / "train.json.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lengths = np.array([len(json.loads(line)["sentence"]) + 2 for line in file])
    for epoch in range(3):
        ratio = padding_ratio(lengths, training_batches(lengths, batch_size=batch_size, seed=1234, epoch=epoch))
        assert ratio <= 1.05
    assert padding_ratio(lengths, evaluation_batches(lengths, batch_size=batch_size)) <= 1.05
