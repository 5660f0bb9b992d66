"""Weights of the classes in the loss, for labels that are not equally common."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, TaskBatch
from megatron.tasks.task import Task

BALANCED = "balanced"


def numbers_of(text: str) -> tuple[float, ...] | None:
    """The numbers of --class-weights 1,2,0.5; None if they are not all positive."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return None
    return numbers if all(0 < number < math.inf for number in numbers) else None


def class_weights(text: str, task: Task, encoded: Encoded) -> Tensor:
    """The weight of each class, fp32 [classes], as --class-weights says.

    encoded: what is trained on. "balanced" makes the weight of a class inverse to its frequency there, on average 1 a
    label, as scikit-learn does. Raises `UserError` for a task whose labels are no classes, and for a wrong number.
    """
    if task.kind.head == "masked" or encoded.row_inputs > 1 or encoded.labels.ndim > 1:
        raise UserError(f"--class-weights is for classification and tagging; {task.name} is {task.kind.name}")
    classes = task.kind.num_outputs(task)
    if text == BALANCED:
        counts = np.bincount(encoded.labels_of(np.arange(encoded.num_rows)), minlength=classes)
        found = counts > 0
        weights = np.where(found, counts.sum() / (found.sum() * np.maximum(counts, 1)), 1.0)
        return torch.from_numpy(weights).float()
    numbers = numbers_of(text)
    assert numbers is not None
    if len(numbers) != classes:
        names = f": {', '.join(task.labels)}" if len(task.labels) == classes else ""
        raise UserError(f"--class-weights {text} are {len(numbers)} for the {classes} classes of {task.name}{names}")
    return torch.tensor(numbers)


def weighted_loss(outputs: Tensor, batch: TaskBatch, weights: Tensor) -> Tensor:
    """The sum of the cross-entropies (nats) of the labels, each times the weight of its class.

    outputs: fp32 [..., classes] of labels [...].
    """
    labels = torch.from_numpy(batch.labels).to(outputs.device)
    return torch.nn.functional.cross_entropy(
        outputs.flatten(0, -2),
        labels.flatten(),
        weight=weights.to(outputs.device),
        reduction="sum",
        ignore_index=IGNORED,
    )
