"""Logits of a whole file, and the scores of a dev file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from megatron.tasks import model
from megatron.tasks.batching import evaluation_batches
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.metrics import cross_entropy, majority_accuracy
from megatron.tasks.run import Run
from megatron.tasks.table import Task


def predict(run: Run, encoded: Encoded) -> np.ndarray:
    """Logits of every row in file order, fp32 [n, classes], on every rank.

    Ranks take whole batches in turn and add a row's logits to the others' zeros: their number changes no bit.
    """
    data, pipeline, device = run.context.data, run.context.pipeline, run.context.device
    logits = torch.zeros(len(encoded.labels), len(run.task.labels), device=device)
    several = 4 * pipeline.size  # micro-batches at a time, to keep a pipeline busy
    own = evaluation_batches(encoded.lengths, batch_size=run.evaluation_batch_size)[data.rank :: data.size]

    def take(found: torch.Tensor, batch: TaskBatch) -> None:
        logits[torch.from_numpy(batch.rows).to(device)] = found

    for start in range(0, len(own), several):
        multiple = run.model.width_multiple
        batches = [encoded.batch(rows, multiple=multiple) for rows in own[start : start + several]]
        model.evaluate(run.model, batches, take)
    return pipeline.all_reduce_(data.all_reduce_(logits)).cpu().numpy()


def evaluate(run: Run, encoded: Encoded) -> dict[str, Any]:
    """The task's metric, the mean loss (nats), and what always answering the commonest label would score."""
    logits, labels = predict(run, encoded), encoded.labels
    return {
        run.task.metric.__name__: run.task.metric(logits.argmax(1), labels),
        "loss": cross_entropy(logits, labels),
        "majority_accuracy": majority_accuracy(labels),
        "examples": len(labels),
    }


def scores_line(task: Task, found: dict[str, Any]) -> str:
    """The scores of a dev file in words."""
    name = task.metric.__name__
    return f"{name} {found[name]:.4f} (majority {found['majority_accuracy']:.4f}) | loss {found['loss']:.4f}"
