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
from megatron.mpu.random import DropoutKeys, dropout_keys
from megatron.mpu.spans import LOADER, OPTIMIZER, span
from megatron.optimizer.adamw import Optimizer, Outcome
from megatron.optimizer.schedule import Schedule
from megatron.planning.flops import encoder_flops, masked_head_flops, pooled_head_flops, token_head_flops
from megatron.tasks import model
from megatron.tasks.batching import training_batches
from megatron.tasks.config import optimizer_config
from megatron.tasks.descriptions import description
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.evaluation import evaluate, main_score, scores_line
from megatron.tasks.inputs import Inputs
from megatron.tasks.run import Run
from megatron.tasks.tuning.adversarial import adversarial_words
from megatron.tasks.tuning.layerwise import rate_factors
from megatron.tasks.tuning.objective import Objective
from megatron.tasks.window import Window, new_sums, new_window, stacked, train_line, train_record
from megatron.training.model import new_optimizer
from megatron.training.profiling import StepProfiler
from megatron.training.throughput import find_peak

BEST, LAST = "best", "last"
MAX_SKIPPED_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to. best, last: dev scores of the evaluation that was best and of the last one.

    steps, samples: what was done, of `planned_steps`; seconds: of training alone, without evaluations.
    """

    best: dict[str, Any]
    last: dict[str, Any]
    steps: int
    planned_steps: int
    samples: int
    seconds: float


def train(run: Run, objective: Objective, train_set: Encoded, dev_set: Inputs) -> Trained:
    """Train, evaluate and keep the best weights, which the model has in the end.

    Raises `UserError` after 50 steps in a row whose gradient was not finite.
    """
    tuning, hyper, context = run.config.tuning, run.hyper, run.context
    settings = optimizer_config(tuning, hyper)
    optimizer = new_optimizer(
        run.model.chunks,
        settings,
        run.config.precision,
        run.config.parallel,
        context,
        rate_of=rate_factors(
            run.model.config.num_layers, frozen_layers=tuning.freeze_layers, decay=tuning.layerwise_lr_decay
        ),
    )
    examples = train_set.num_rows
    schedule = Schedule(
        config=settings,
        warmup=int(hyper.lr_warmup_fraction * examples * hyper.epochs),
        decay=examples * hyper.epochs,
    )
    epoch_steps = -(-examples // hyper.global_batch_size)
    steps = epoch_steps * hyper.epochs
    best: dict[str, Any] = {}
    last: dict[str, Any] = {}
    consumed = skipped = skipped_in_a_row = worse_in_a_row = 0
    peak = find_peak(run.config.precision.dtype, context)
    run.recorder.say(peak.describe())
    profiler = StepProfiler(run.config.logging, context, run.recorder.say)
    window, started = new_window(context), time.perf_counter()
    for step, (epoch, rows) in enumerate(_batches(run, train_set), start=1):
        rate = schedule.learning_rate(consumed)
        consumed += len(rows)
        with profiler.step(step):
            outcome = train_step(run, objective, optimizer, train_set, rows, epoch, rate, window)
        window.started, started = window.started + profiler.pause, started + profiler.pause
        skipped += outcome.skipped
        skipped_in_a_row = skipped_in_a_row + 1 if outcome.skipped else 0
        if skipped_in_a_row == MAX_SKIPPED_STEPS:
            raise UserError(f"the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row; lower --lr")
        position = {"step": step, "epoch": consumed / examples, "consumed_samples": consumed}
        if step % run.config.logging.log_interval == 0 or step == steps:
            record = train_record(position, window, context, peak, r_drop=objective.r_drop)
            record |= {"learning_rate": rate, "grad_norm": outcome.grad_norm, "skipped_steps": skipped}
            run.recorder.write(record, train_line(record, steps))
            window = new_window(context)
        if step % (tuning.eval_interval or epoch_steps) == 0 or step == steps:
            paused = time.perf_counter()
            last = {**evaluate(run, dev_set), **position}
            run.recorder.write({"split": "dev", **last}, f"dev step {step}/{steps} | {scores_line(last)}")
            worse_in_a_row += 1
            if not best or last[main_score(last)] > best[main_score(last)]:
                best, worse_in_a_row = last, 0
                _save(run, optimizer, best, BEST, Pruning(last=1))
            if tuning.keep_last_checkpoints is not None:
                _save(run, optimizer, last, LAST, Pruning(last=tuning.keep_last_checkpoints))
            pause = time.perf_counter() - paused
            window.started, started = window.started + pause, started + pause
            if worse_in_a_row == tuning.early_stopping and step < steps:
                run.recorder.say(f"stopped early: no better {main_score(last)} since step {best['step']}")
                break
    seconds = time.perf_counter() - started
    profiler.finish()
    _load_best(run, optimizer, best["step"])
    return Trained(best=best, last=last, steps=step, planned_steps=steps, samples=consumed, seconds=seconds)


def _batches(run: Run, train_set: Encoded) -> Iterator[tuple[int, np.ndarray]]:
    """The epoch and the rows of each step."""
    size, seed = run.hyper.global_batch_size, run.config.tuning.seed
    for epoch in range(run.hyper.epochs):
        for rows in training_batches(train_set.lengths, batch_size=size, seed=seed, epoch=epoch):
            yield epoch, rows


def train_step(
    run: Run,
    objective: Objective,
    optimizer: Optimizer,
    train_set: Encoded,
    rows: np.ndarray,
    epoch: int,
    rate: float,
    window: Window,
) -> Outcome:
    """One step over a global batch, int64 [rows], of which this rank takes its share; counted in `window`.

    The loss is the sum over the batch divided by the counts of the batch, whatever the division into shares.
    """
    context, tuning = run.context, run.config.tuning
    # A batch is sorted by length: dealing its rows out in turn gives ranks equal work.
    own = rows[context.data.rank :: context.data.size]
    size = tuning.micro_batch_size or max(len(own), 1)
    multiple = run.model.width_multiple
    began = time.perf_counter()
    with span(LOADER):
        batches = [
            objective.batch(train_set, own[at : at + size], multiple=multiple) for at in range(0, len(own), size)
        ]
    window.loader += time.perf_counter() - began
    counts, totals = objective.counts(train_set, rows), new_sums(context)

    def loss(outputs: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        sums = objective.sums(outputs, batch)
        totals.add_(stacked(sums))
        return objective.value(sums, counts) * optimizer.loss_scale.scale

    def keys(batch: TaskBatch) -> DropoutKeys:
        copy = np.repeat(np.arange(objective.copies), len(batch.inputs) // objective.copies)
        samples = torch.from_numpy(batch.inputs + (epoch + copy * run.hyper.epochs) * train_set.num_inputs)
        sequence, heads = batch.tokens.shape[1], run.model.config.num_attention_heads
        return dropout_keys(tuning.seed, samples.to(context.device), sequence=sequence, heads=heads, context=context)

    optimizer.begin_step(len(batches))
    model.train(run.model, batches, loss, keys)
    sums = totals.clone()  # without those of the adversarial pass
    if tuning.fgm:
        with adversarial_words(optimizer, tuning.fgm, context):
            optimizer.next_pass(len(batches))
            model.train(run.model, batches, loss, keys)
    with span(OPTIMIZER):
        outcome = optimizer.step(rate)
    window.steps += 1
    window.tokens += int(train_set.lengths_of(rows).sum())
    window.flops += _flops(run, objective, train_set, rows)
    if not outcome.skipped:
        window.add(sums, counts, len(rows))
    return outcome


def _flops(run: Run, objective: Objective, train_set: Encoded, rows: np.ndarray) -> float:
    """Model FLOPs of a step over a global batch, int64 [rows]; a second pass and R-Drop's copies are of the model."""
    shape, kind, tuning = run.model.config, run.task.kind, run.config.tuning
    lengths = train_set.lengths_of(rows)
    tokens, inputs = int(lengths.sum()), len(lengths)
    flops = encoder_flops(
        shape, tokens=tokens, squared_lengths=int((lengths**2).sum()), frozen_layers=tuning.freeze_layers or 0
    )
    if kind.head == "masked":
        assert train_set.masks is not None
        flops += masked_head_flops(shape, inputs * train_set.masks.shape[1])
    elif kind.head == "token":
        flops += token_head_flops(shape, tokens, kind.num_outputs(run.task))
    else:
        flops += pooled_head_flops(shape, inputs, kind.num_outputs(run.task))
    return flops * objective.copies * (2 if tuning.fgm else 1)


def _save(run: Run, optimizer: Optimizer, scores: dict[str, Any], name: str, pruning: Pruning) -> None:
    """Save the weights in a folder of the output, and remove the older ones that `pruning` does not keep."""
    config = {
        **to_dict(run.config),
        "model": to_dict(run.model.config),
        "data": {"tokenizer_type": run.pretrained.tokenizer.kind, "seq_length": run.hyper.seq_length},
        "task": description(run.task, run.hyper.seq_length),
        "hyperparameters": to_dict(run.hyper),
    }
    save_checkpoint(
        run.output / name,
        scores["step"],
        model=optimizer.weights(once=True),
        optimizer=[],
        files={CONFIG: json_bytes(config), TRAIN_STATE: json_bytes(scores), **run.pretrained.tokenizer_files},
        context=run.context,
        pruning=pruning,
    )


def _load_best(run: Run, optimizer: Optimizer, step: int) -> None:
    load_tensors(run.output / BEST / f"iter_{step:07d}", "model", optimizer.weights(), context=run.context)
    optimizer.publish()
    optimizer.flat.wait_for_weights()
