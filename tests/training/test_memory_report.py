"""The report at a run's start says what its rank will need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.run import train


def test_the_start_says_what_memory_it_takes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(corpus, train_iters=1)
    output = capsys.readouterr().out
    assert re.search(
        r"^memory of rank 0: [\d.]+ \w+ weights, "
        r"[\d.]+ \w+ gradients, [\d.]+ \w+ optimizer \(exact\); about [\d.]+ \w+ "
        r"activations and [\d.]+ \w+ workspace; together about [\d.]+ \w+$",
        output,
        re.MULTILINE,
    )
