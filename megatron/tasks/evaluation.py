"""Outputs of the model for whole files, and the scores of a dev file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from megatron.tasks import model
from megatron.tasks.batching import evaluation_batches
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.inputs import Inputs
from megatron.tasks.run import Run
from megatron.tasks.task import Task


def outputs_of(
    task: Task, task_model: model.TaskModel, encoded: Encoded, *, batch_size: int
) -> tuple[np.ndarray, float]:
    """Outputs for every input in file order, fp32, as `Kind.decode` takes them, and the sum of losses (nats).

    On every rank. Ranks take whole batches in turn and add an input's outputs to the others' zeros: their number
    changes no bit of them.
    """
    context = task_model.pipeline.context
    data, pipeline, device = context.data, context.pipeline, context.device
    if task.kind.head == "token":
        outputs = torch.zeros(len(encoded.tokens), task.kind.num_outputs(task), device=device)
    else:
        width = task.kind.num_outputs(task) if encoded.candidates is None else encoded.candidates.shape[1]
        outputs = torch.zeros(encoded.num_inputs, width, device=device)
    losses = torch.zeros(1, dtype=torch.float64, device=device)
    several = 4 * pipeline.size  # micro-batches at a time, to keep a pipeline busy
    own = evaluation_batches(encoded.lengths, batch_size=batch_size)[data.rank :: data.size]

    def take(found: torch.Tensor, batch: TaskBatch) -> None:
        losses.add_(task.kind.loss(task, found, batch)[0].double())
        places = torch.from_numpy(batch.inputs)
        if task.kind.head == "token":
            columns = torch.arange(batch.tokens.shape[1])
            real = columns < torch.from_numpy(batch.lengths)[:, None]
            places = (torch.from_numpy(encoded.offsets)[places, None] + columns)[real]
            found = found[real.to(device)]
        outputs[places.to(device)] = found

    for start in range(0, len(own), several):
        multiple = task_model.width_multiple
        batches = [encoded.batch(rows, multiple=multiple) for rows in own[start : start + several]]
        model.evaluate(task_model, batches, take)
    for sums in (outputs, losses):
        pipeline.all_reduce_(data.all_reduce_(sums))
    return outputs.cpu().numpy(), losses.item()


def answers(run: Run, inputs: Inputs) -> tuple[list[Any], float]:
    """A prediction for each example, and the sum of losses (nats). Collective."""
    encoded, task = inputs.encoded, run.task
    outputs, losses = outputs_of(task, run.model, encoded, batch_size=run.evaluation_batch_size)
    return task.kind.decode(task, inputs.examples, encoded, outputs), losses


def evaluate(run: Run, inputs: Inputs) -> dict[str, Any]:
    """The task's scores, first of them the one that the best checkpoint has most of, and the mean loss (nats)."""
    encoded = inputs.encoded
    predictions, losses = answers(run, inputs)
    return {
        **run.task.scores(run.task, inputs.examples, predictions),
        "loss": losses / max(encoded.count(np.arange(encoded.num_rows)), 1),  # a dev file may lack its answers' places
        "examples": len(inputs.examples),
    }


def main_score(found: dict[str, Any]) -> str:
    """The name of the score by which the best checkpoint is chosen."""
    return next(iter(found))


def scores_line(found: dict[str, Any]) -> str:
    """The scores of a dev file in words."""
    names = [name for name in found if name not in NOT_SCORES]
    majority = f" (majority {found['majority_accuracy']:.4f})" if "majority_accuracy" in found else ""
    first, *others = [f"{name} {found[name]:.4f}" for name in names]
    return f"{', '.join([first + majority, *others])} | loss {found['loss']:.4f}"


NOT_SCORES = {"majority_accuracy", "loss", "examples", "step", "epoch", "consumed_samples"}
"""What stands beside the scores of a dev file."""
