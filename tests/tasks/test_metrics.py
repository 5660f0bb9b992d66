"""Scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, log_loss

from megatron.tasks.metrics import accuracy, cross_entropy, majority_accuracy


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_accuracy(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions))
    majority = DummyClassifier(strategy="most_frequent").fit(labels[:, None], labels)
    assert majority_accuracy(labels) == pytest.approx(majority.score(labels[:, None], labels))


def test_cross_entropy_is_log_loss_and_does_not_overflow() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 200)
    exact = np.exp(logits.astype(np.float64))
    expected = log_loss(labels, exact / exact.sum(1, keepdims=True), labels=range(5))
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-9)
    assert cross_entropy(np.array([[1e4, 0.0]], dtype=np.float32), np.array([1])) == pytest.approx(1e4)
