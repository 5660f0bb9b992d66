"""Layers of the parts: equal where possible, otherwise no part slower than it must be."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.mpu.pipeline.split import layer_ranges, split_layers

extras = st.floats(0.0, 6.0, allow_nan=False)


@given(st.integers(1, 8), st.integers(1, 8), extras, extras)
def test_equal_where_it_divides(parts: int, each: int, first: float, last: float) -> None:
    assert split_layers(parts * each, parts, first_extra=first, last_extra=last) == (each,) * parts


def largest(split: tuple[int, ...], first: float, last: float) -> float:
    costs = [float(layers) for layers in split]
    costs[0] += first
    costs[-1] += last
    return max(costs)


@given(st.integers(1, 11), st.integers(1, 5), extras, extras)
def test_no_other_split_has_a_smaller_maximum(layers: int, parts: int, first: float, last: float) -> None:
    if parts > layers or layers % parts == 0:
        return
    split = split_layers(layers, parts, first_extra=first, last_extra=last)
    assert (len(split), sum(split), min(split) >= 1) == (parts, layers, True)
    others = (
        tuple(b - a for a, b in zip((0, *cuts), (*cuts, layers), strict=True))
        for cuts in combinations(range(1, layers), parts - 1)
    )
    assert largest(split, first, last) == pytest.approx(min(largest(other, first, last) for other in others))


def test_embedding_and_head_count() -> None:
    assert split_layers(26, 4, first_extra=0.0, last_extra=0.0) == (6, 6, 7, 7)
    assert split_layers(26, 4, first_extra=0.5, last_extra=1.0) == (6, 7, 7, 6)
    assert split_layers(26, 4, first_extra=0.0, last_extra=9.0) == (8, 8, 9, 1)
    assert split_layers(5, 4, first_extra=9.0, last_extra=9.0) == (1, 1, 2, 1)


@pytest.mark.parametrize(("layers", "parts"), [(3, 4), (0, 1), (4, 0)])
def test_too_few_layers_are_refused(layers: int, parts: int) -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        split_layers(layers, parts, first_extra=0.0, last_extra=0.0)


def test_ranges_of_layers() -> None:
    assert layer_ranges((7, 6, 6, 5)) == ((0, 7), (7, 13), (13, 19), (19, 24))
    assert layer_ranges((3,)) == ((0, 3),)
