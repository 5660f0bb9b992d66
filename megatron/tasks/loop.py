"""The fine-tuning run, from its first step to its last; the checkpoint that is best on the dev file is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron.checkpoint import json_bytes, load_tensors, save_checkpoint
from megatron.checkpoint.store import CONFIG, TRAIN_STATE, Pruning
from megatron.config import to_dict
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.random import DropoutKeys, dropout_keys
from megatron.optimizer.adamw import Optimizer, Outcome
from megatron.optimizer.schedule import Schedule
from megatron.tasks import model
from megatron.tasks.batching import training_batches
from megatron.tasks.config import optimizer_config
from megatron.tasks.descriptions import description
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.evaluation import evaluate, main_score, scores_line
from megatron.tasks.inputs import Inputs
from megatron.tasks.run import Run
from megatron.training.model import new_optimizer
from megatron.training.records import clock

BEST = "best"
MAX_SKIPPED_STEPS = 50


@dataclass
class Window:
    """What happened since the last record. sums: of losses (nats) and of hits, fp64 [2], of this rank's labels."""

    sums: torch.Tensor
    started: float
    samples: int = 0
    labels: int = 0
    tokens: int = 0
    steps: int = 0


def train(run: Run, train_set: Encoded, dev_set: Inputs) -> dict[str, Any]:
    """Train, evaluate and keep the best weights, which the model has in the end. Returns their dev scores.

    Raises `UserError` after 50 steps in a row whose gradient was not finite.
    """
    tuning, hyper, context = run.config.tuning, run.hyper, run.context
    settings = optimizer_config(tuning, hyper)
    optimizer = new_optimizer(run.model.chunks, settings, run.config.precision, run.config.parallel, context)
    examples = train_set.num_rows
    schedule = Schedule(
        config=settings,
        warmup=int(hyper.lr_warmup_fraction * examples * hyper.epochs),
        decay=examples * hyper.epochs,
    )
    epoch_steps = -(-examples // hyper.global_batch_size)
    steps = epoch_steps * hyper.epochs
    best: dict[str, Any] = {}
    consumed = skipped = skipped_in_a_row = 0
    window = _new_window(context)
    for step, (epoch, rows) in enumerate(_batches(run, train_set), start=1):
        rate = schedule.learning_rate(consumed)
        consumed += len(rows)
        outcome = train_step(run, optimizer, train_set, rows, epoch, rate, window)
        skipped += outcome.skipped
        skipped_in_a_row = skipped_in_a_row + 1 if outcome.skipped else 0
        if skipped_in_a_row == MAX_SKIPPED_STEPS:
            raise UserError(f"the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row; lower --lr")
        position = {"step": step, "epoch": consumed / examples, "consumed_samples": consumed}
        if step % run.config.logging.log_interval == 0 or step == steps:
            record = _train_record(position, window, context)
            record |= {"learning_rate": rate, "grad_norm": outcome.grad_norm, "skipped_steps": skipped}
            run.recorder.write(record, _train_line(record, steps))
            window = _new_window(context)
        if step % (tuning.eval_interval or epoch_steps) == 0 or step == steps:
            paused = time.perf_counter()
            found = {**evaluate(run, dev_set), **position}
            run.recorder.write({"split": "dev", **found}, f"dev step {step}/{steps} | {scores_line(found)}")
            if not best or found[main_score(found)] > best[main_score(found)]:
                best = found
                _save_best(run, optimizer, best)
            window.started += time.perf_counter() - paused
    _load_best(run, optimizer, best["step"])
    return best


def _batches(run: Run, train_set: Encoded) -> Iterator[tuple[int, np.ndarray]]:
    """The epoch and the rows of each step."""
    size, seed = run.hyper.global_batch_size, run.config.tuning.seed
    for epoch in range(run.hyper.epochs):
        for rows in training_batches(train_set.lengths, batch_size=size, seed=seed, epoch=epoch):
            yield epoch, rows


def train_step(
    run: Run, optimizer: Optimizer, train_set: Encoded, rows: np.ndarray, epoch: int, rate: float, window: Window
) -> Outcome:
    """One step over a global batch, int64 [rows], of which this rank takes its share; counted in `window`.

    The loss is the sum over the batch divided by its number of labels, whatever the division into shares.
    """
    context, tuning = run.context, run.config.tuning
    # A batch is sorted by length: dealing its rows out in turn gives ranks equal work.
    own = rows[context.data.rank :: context.data.size]
    size = tuning.micro_batch_size or max(len(own), 1)
    multiple = run.model.width_multiple
    batches = [train_set.batch(own[start : start + size], multiple=multiple) for start in range(0, len(own), size)]
    sums = torch.zeros_like(window.sums)

    count = train_set.count(rows)

    def loss(outputs: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        total, hits = run.task.kind.loss(run.task, outputs, batch)
        sums.add_(torch.stack([total.detach().double(), hits.double()]))
        return total * (optimizer.loss_scale.scale / count)

    def keys(batch: TaskBatch) -> DropoutKeys:
        samples = torch.from_numpy(batch.inputs + epoch * train_set.num_inputs).to(context.device)
        heads = run.model.config.num_attention_heads
        return dropout_keys(tuning.seed, samples, sequence=batch.tokens.shape[1], heads=heads, context=context)

    optimizer.begin_step(len(batches))
    model.train(run.model, batches, loss, keys)
    outcome = optimizer.step(rate)
    window.steps += 1
    window.tokens += int(train_set.lengths_of(rows).sum())
    if not outcome.skipped:  # the losses of a skipped step may not be numbers
        window.samples += len(rows)
        window.labels += count
        window.sums += sums
    return outcome


def _new_window(context: ParallelContext) -> Window:
    return Window(sums=torch.zeros(2, dtype=torch.float64, device=context.device), started=time.perf_counter())


def _train_record(position: dict[str, Any], window: Window, context: ParallelContext) -> dict[str, Any]:
    """Means over the labels of all ranks since the last record."""
    loss, hits = context.pipeline.all_reduce_(context.data.all_reduce_(window.sums)).tolist()
    seconds, labels = time.perf_counter() - window.started, max(window.labels, 1)
    return {
        "split": "train",
        **position,
        "loss": loss / labels,
        "accuracy": hits / labels,
        "samples_per_second": window.samples / seconds,
        "tokens_per_second": window.tokens / seconds,
        "step_seconds": seconds / window.steps,
    }


def _train_line(record: dict[str, Any], steps: int) -> str:
    left = (steps - record["step"]) * record["step_seconds"]
    skipped = f" | skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    return (
        f"step {record['step']}/{steps} | epoch {record['epoch']:.2f} | loss {record['loss']:.4f} "
        f"({record['accuracy']:.1%}) | lr {record['learning_rate']:.3e} | norm {record['grad_norm']:.3f}{skipped} "
        f"| {record['samples_per_second']:.0f} samples/s | ETA {clock(left)}"
    )


def _save_best(run: Run, optimizer: Optimizer, best: dict[str, Any]) -> None:
    """Save the weights to OUTPUT/best in place of those that were the best before."""
    config = {
        **to_dict(run.config),
        "model": to_dict(run.model.config),
        "data": {"tokenizer_type": run.pretrained.tokenizer.kind, "seq_length": run.hyper.seq_length},
        "task": description(run.task, run.hyper.seq_length),
        "hyperparameters": to_dict(run.hyper),
    }
    save_checkpoint(
        run.output / BEST,
        best["step"],
        model=optimizer.weights(once=True),
        optimizer=[],
        files={CONFIG: json_bytes(config), TRAIN_STATE: json_bytes(best), **run.pretrained.tokenizer_files},
        context=run.context,
        pruning=Pruning(last=1),
    )


def _load_best(run: Run, optimizer: Optimizer, step: int) -> None:
    load_tensors(run.output / BEST / f"iter_{step:07d}", "model", optimizer.weights(), context=run.context)
    optimizer.publish()
    optimizer.flat.wait_for_weights()
