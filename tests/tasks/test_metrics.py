"""Scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score

from megatron.tasks.metrics import accuracy, majority_accuracy, softmax


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_accuracy(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions))
    majority = DummyClassifier(strategy="most_frequent").fit(labels[:, None], labels)
    assert majority_accuracy(labels) == pytest.approx(majority.score(labels[:, None], labels))


def test_softmax_does_not_overflow() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (200, 5)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), scipy.special.softmax(logits.astype(np.float64), axis=1), rtol=1e-9)
    assert softmax(np.array([[1e4, 0.0]], dtype=np.float32)).tolist() == [[1.0, 0.0]]
