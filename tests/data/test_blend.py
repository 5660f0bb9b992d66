"""Blending of corpora: Megatron's rule, exact over every prefix, from any starting point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.blend import blend, parse_data_path
from megatron.errors import UserError
from megatron.native import _C

weights_strategy = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=8).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


def simulate(weights: list[float], count: int) -> tuple[list[int], list[int]]:
    """The rule, one sample at a time."""
    taken, corpora, numbers = [0] * len(weights), [], []
    for k in range(count):
        deficits = [weight * max(k, 1) - number for weight, number in zip(weights, taken, strict=True)]
        chosen = deficits.index(max(deficits))
        corpora.append(chosen)
        numbers.append(taken[chosen])
        taken[chosen] += 1
    return corpora, numbers


def test_gives_the_order_of_megatron() -> None:
    corpora, _ = blend((0.3, 0.5, 0.2), 0, 20)
    assert corpora.tolist() == [1, 0, 2, 1, 0, 1, 2, 1, 0, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1]


@settings(max_examples=100, deadline=None)
@given(weights=weights_strategy, first=st.integers(0, 300), count=st.integers(0, 100))
def test_starts_anywhere(weights, first, count) -> None:
    corpora, numbers = blend(weights, first, count)
    expected_corpora, expected_numbers = simulate(weights, first + count)
    assert corpora.tolist() == expected_corpora[first:]
    assert numbers.tolist() == expected_numbers[first:]


@settings(max_examples=50, deadline=None)
@given(weights=weights_strategy)
def test_no_corpus_runs_ahead_of_its_share_in_any_prefix(weights) -> None:
    corpora, numbers = blend(weights, 0, 2000)
    taken = np.cumsum(corpora[:, None] == np.arange(len(weights)), axis=0)
    ahead = taken - np.arange(1, 2001)[:, None] * np.array(weights)
    assert ahead[1:].max() < 1.0
    assert ahead.min() > -len(weights)
    # Each corpus gives its samples in order, without a gap.
    for corpus in range(len(weights)):
        assert numbers[corpora == corpus].tolist() == list(range(taken[-1, corpus]))


def test_jumps_far_ahead_and_back_agree_with_one_pass() -> None:
    weights = [0.3, 0.45, 0.25]
    corpora, numbers = blend(weights, 0, 100_000)
    jumping = _C.Blend(weights)
    for first in (99_000, 50_000, 16_384, 16_383, 70_000, 0, 98_000):
        part = jumping.assign(first, 1000)
        np.testing.assert_array_equal(part[0], corpora[first : first + 1000])
        np.testing.assert_array_equal(part[1], numbers[first : first + 1000])
        assert jumping.taken(first) == np.bincount(corpora[:first], minlength=3).tolist()


def test_data_path_is_a_prefix_or_pairs() -> None:
    assert parse_data_path(["a"]) == ((1.0,), ("a",))
    assert parse_data_path(["3", "a", "1", "b"]) == ((0.75, 0.25), ("a", "b"))


@pytest.mark.parametrize(
    ("data_path", "reason"),
    [
        ([], "is empty"),
        (["1", "a", "2"], "3 parts"),
        (["a", "b"], "'a' stands where a weight is expected"),
        (["0", "a", "1", "b"], "weight 0 is not positive"),
        (["nan", "a", "1", "b"], "not positive"),
        (["inf", "a", "1", "b"], "not positive"),
        (["1", "a", "1", "./a"], "twice"),
    ],
)
def test_a_bad_data_path_is_refused(data_path: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_data_path(data_path)
