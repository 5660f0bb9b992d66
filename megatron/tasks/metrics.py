"""Scores of predictions, each a pure function over every scored row."""

from __future__ import annotations

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose predicted class is the label; both int [n], n > 0."""
    return float(np.mean(predictions == labels))


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of always predicting the commonest of the labels, int [n], n > 0."""
    return float(np.bincount(labels).max() / len(labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
