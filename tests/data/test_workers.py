"""Work over processes: order, bounds, errors, and processes that die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from megatron.data.workers import ordered_map
from megatron.errors import UserError


def make_square() -> Callable[[int], int]:
    def square(item: int) -> int:
        time.sleep(0.02 * (item % 3 == 0))
        return item * item

    return square


def make_failing(error: type[Exception]) -> Callable[[int], int]:
    def fail(item: int) -> int:
        if item == 3:
            raise error("three")
        return item

    return fail


def make_dying() -> Callable[[int], int]:
    def die(item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return die


def make_big() -> Callable[[bytes], bytes]:
    return lambda item: item * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered_map(make_square, range(40), workers=workers)) == [i * i for i in range(40)]


def test_messages_larger_than_a_pipe() -> None:
    item = bytes(3 << 20)
    assert all(len(result) == 2 * len(item) for result in ordered_map(make_big, [item] * 8, workers=2))


def test_items_are_taken_as_they_are_needed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield i

    results = ordered_map(make_square, items(), workers=2)
    for _ in range(10):
        next(results)
    results.close()
    assert taken <= 10 + 2 * 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [UserError, ValueError])
def test_an_error_is_raised_in_its_turn(error: type[Exception]) -> None:
    results = ordered_map(partial(make_failing, error), range(9), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error, match="three"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        list(ordered_map(make_dying, range(9), workers=2))
    assert not multiprocessing.active_children()
