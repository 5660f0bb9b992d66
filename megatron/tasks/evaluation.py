"""Logits of a whole file, and the scores of a dev file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.tasks.batching import evaluation_batches
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.metrics import cross_entropy, majority_accuracy
from megatron.tasks.table import Task


def task_logits(model: BertForTask, batch: TaskBatch, context: ParallelContext, keys: Any = None) -> torch.Tensor:
    """Logits of a batch, fp32 [b, classes]; keys: dropout keys, None for none."""
    arrays = (batch.tokens, batch.token_types, batch.lengths)
    return model(*(torch.from_numpy(array).to(context.device, non_blocking=True) for array in arrays), keys)


@torch.no_grad()
def predict(
    model: BertForTask, encoded: Encoded, *, classes: int, batch_size: int, context: ParallelContext
) -> np.ndarray:
    """Logits of every row in file order, fp32 [n, classes], on every rank.

    Ranks take whole batches in turn, and a row's logits are added to zeros: the number of ranks changes no bit.
    """
    logits = torch.zeros(len(encoded.labels), classes, device=context.device)
    model.eval()
    for rows in evaluation_batches(encoded.lengths, batch_size=batch_size)[context.data.rank :: context.data.size]:
        logits[torch.from_numpy(rows).to(context.device)] = task_logits(model, encoded.batch(rows), context)
    model.train()
    return context.data.all_reduce_(logits).cpu().numpy()


def scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The task's metric, the mean loss (nats), and what always answering the commonest label would score."""
    return {
        task.metric.__name__: task.metric(logits.argmax(1), labels),
        "loss": cross_entropy(logits, labels),
        "majority_accuracy": majority_accuracy(labels),
        "examples": len(labels),
    }
