"""Scores of predictions, each a pure function over every scored row."""

from __future__ import annotations

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose predicted class is the label; both int [n], n > 0."""
    return float(np.mean(predictions == labels))


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of always predicting the commonest of the labels, int [n], n > 0."""
    return float(np.bincount(labels).max() / len(labels))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log softmax(logits)[label] over the rows, in fp64; logits [n, classes], labels int [n]."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_sums - shifted[np.arange(len(labels)), labels]))
