"""Scores of predictions, each a pure function over every scored row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose predicted class is the label; both int [n], n > 0."""
    return float(np.mean(predictions == labels))


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of always predicting the commonest of the labels, int [n], n > 0."""
    return float(np.bincount(labels).max() / len(labels))


def accuracies(predictions: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy, what always answering the commonest label would score, and the accuracy of each group that has a name.

    predictions, labels: int [n], n > 0; groups: n names, "" for none.
    """
    found = {"accuracy": accuracy(predictions, labels), "majority_accuracy": majority_accuracy(labels)}
    names = np.array(groups)
    for name in sorted(set(groups) - {""}):
        found[f"accuracy_{name}"] = accuracy(predictions[names == name], labels[names == name])
    return found


def binary_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1: 2 true positives / (predicted + real); int [n] of 0 and 1. 0 where there are neither."""
    right = int(((predictions == 1) & (labels == 1)).sum())
    return 2 * right / max(int((predictions == 1).sum() + (labels == 1).sum()), 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
