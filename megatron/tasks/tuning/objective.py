"""What a step of fine-tuning minimises: the loss of the task's kind, weights of classes, and R-Drop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron.tasks.config import TuningConfig
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.task import Task
from megatron.tasks.tuning.class_weights import class_weights, weighted_loss
from megatron.tasks.tuning.regularization import divergence_sum


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What sums over a global batch are divided by. weight: of its labels, their number where they weigh alike."""

    weight: float
    labels: int


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over some rows, scalars: of losses and of R-Drop's divergences (nats), and of labels that were hit."""

    loss: Tensor
    divergence: Tensor
    hits: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """class_weights: fp32 [classes], None where all weigh alike; r_drop: what the divergence counts, 0 for none."""

    task: Task
    class_weights: Tensor | None
    r_drop: float

    @property
    def copies(self) -> int:
        """How many times a row goes through the model in a step."""
        return 2 if self.r_drop else 1

    def counts(self, encoded: Encoded, rows: np.ndarray) -> Counts:
        """Of the rows of a global batch, int64 [rows]."""
        labels = encoded.labels_of(rows)
        count = len(labels)
        if self.class_weights is None:
            return Counts(weight=count, labels=count)
        return Counts(weight=float(self.class_weights.double()[labels].sum()), labels=count)

    def batch(self, encoded: Encoded, rows: np.ndarray, *, multiple: int) -> TaskBatch:
        """The rows as one batch, each so many times as `copies` says: all of them, then all of them again."""
        return encoded.batch(np.tile(rows, self.copies), multiple=multiple)

    def sums(self, outputs: Tensor, batch: TaskBatch) -> Sums:
        """Of such a batch; each row counts once."""
        loss, hits = self.task.kind.loss(self.task, outputs, batch)
        if self.class_weights is not None:
            loss = weighted_loss(outputs, batch, self.class_weights)
        divergence = torch.zeros((), device=outputs.device)
        if self.r_drop:
            divergence = divergence_sum(self.task.kind.head, outputs, batch)
        return Sums(loss=loss / self.copies, divergence=divergence, hits=hits / self.copies)

    def value(self, sums: Sums, counts: Counts) -> Tensor:
        """The part of the step's loss that such sums are; parts add up to the loss of the global batch."""
        return sums.loss / counts.weight + sums.divergence * (self.r_drop / counts.labels)


def new_objective(tuning: TuningConfig, task: Task, encoded: Encoded) -> Objective:
    """As the flags say, for training on `encoded`. Raises `UserError` as `class_weights`."""
    weights = None if tuning.class_weights is None else class_weights(tuning.class_weights, task, encoded)
    return Objective(task=task, class_weights=weights, r_drop=tuning.r_drop)
