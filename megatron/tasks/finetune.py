"""Fine-tuning: train on a task's training file, keep what is best on its dev file, predict its test files.

A run is a function of (checkpoint, files, hyper-parameters, seed). The loss of a step is a sum over the global batch
divided by its count, so the number of processes and the micro-batch size do not change it beyond rounding.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.checkpoint import NamedTensor, check_writable, load_tensors, save_checkpoint
from megatron.config import ModelConfig, to_dict
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import local_heads
from megatron.mpu.random import dropout_keys
from megatron.mpu.sharding import initialize
from megatron.optimizer.adamw import DTYPES, Optimizer, Outcome
from megatron.optimizer.schedule import Schedule
from megatron.tasks.batching import padding_ratio, training_batches
from megatron.tasks.config import FinetuneConfig, optimizer_config
from megatron.tasks.encode import Encoded
from megatron.tasks.evaluation import predict, scores, task_logits
from megatron.tasks.inputs import Inputs, description, find_files, open_task, read_inputs
from megatron.tasks.pretrained import Pretrained, load_weights, open_pretrained
from megatron.tasks.submission import json_text, submission_name, submission_text, write_text
from megatron.tasks.table import Hyperparameters, Task
from megatron.training.records import Recorder, clock

MAX_SKIPPED_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every part of a run needs to know."""

    config: FinetuneConfig
    context: ParallelContext
    task: Task
    hyper: Hyperparameters
    pretrained: Pretrained
    model_config: ModelConfig
    output: Path

    @property
    def evaluation_batch_size(self) -> int:
        """Rows at a time without gradients; the same for any number of processes."""
        return 4 * (self.config.tuning.micro_batch_size or self.hyper.global_batch_size)


def finetune(config: FinetuneConfig, context: ParallelContext) -> dict[str, Any]:
    """Run a fine-tuning job as configured; returns the dev scores of the model that is kept.

    Raises `UserError` on all ranks for wrong options, files and checkpoints.
    """
    config.check()
    output = Path(config.source.output_dir)
    with context.together():
        files = find_files(config.task, eval_only=config.source.eval_only)
    check_writable(output, context)
    workspace = output / ".pretrained"
    try:
        pretrained = open_pretrained(Path(config.source.pretrained_checkpoint), workspace, context)
        saved = _saved_task(config, pretrained)
        with context.together():
            task = open_task(config.task, files, saved)
            run = _run(config, context, task, pretrained, saved)
            length, tokenizer = run.hyper.seq_length, pretrained.tokenizer
            train = None if files.train is None else read_inputs(task, files.train, "train", tokenizer, length)
            dev = read_inputs(task, files.dev, "dev", tokenizer, length)
            tests = [read_inputs(task, path, "test", tokenizer, length) for path in files.tests]
        recorder = _recorder(run)
        _announce(run, recorder, [inputs for inputs in (train, dev, *tests) if inputs is not None])
        model = _model(run, recorder)
        if train is None:
            model.to(context.device, DTYPES[config.precision.dtype])
            metrics = _evaluate(run, model, dev.encoded)
        else:
            metrics = _train(run, model, train.encoded, dev.encoded, recorder)
        recorder.say(f"dev {_scores_line(run, metrics)}")
        results = {"task": task.name, **metrics}
        if context.is_main:
            write_text(output / "dev_metrics.json", json_text(results))
        for test in tests:
            _write_submission(run, model, test, recorder)
        recorder.close()
        return results
    finally:
        if context.is_main:
            shutil.rmtree(workspace, ignore_errors=True)


def _saved_task(config: FinetuneConfig, pretrained: Pretrained) -> dict[str, Any] | None:
    """The description of the task in a checkpoint that is only evaluated."""
    if not config.source.eval_only:
        return None
    if pretrained.task is None:
        raise UserError(
            f"--eval-only: {pretrained.folder} is not fine-tuned; give the folder best/ of a fine-tuning run's output"
        )
    return pretrained.task


def _run(
    config: FinetuneConfig, context: ParallelContext, task: Task, pretrained: Pretrained, saved: dict[str, Any] | None
) -> Run:
    defaults = task.defaults if saved is None else dataclasses.replace(task.defaults, seq_length=saved["seq_length"])
    hyper = config.tuning.hyperparameters(defaults)
    shape = dataclasses.replace(
        pretrained.model, hidden_dropout=hyper.hidden_dropout, attention_dropout=hyper.attention_dropout
    )
    if hyper.seq_length > shape.max_position_embeddings:
        raise UserError(
            f"--seq-length {hyper.seq_length} is above the model's {shape.max_position_embeddings} positions; "
            f"give --seq-length {shape.max_position_embeddings} or less"
        )
    return Run(
        config=config,
        context=context,
        task=task,
        hyper=hyper,
        pretrained=pretrained,
        model_config=shape,
        output=Path(config.source.output_dir),
    )


def _recorder(run: Run) -> Recorder:
    logging = run.config.logging
    file = logging.metrics_file or str(run.output / "metrics.jsonl")
    config = dataclasses.replace(run.config, logging=dataclasses.replace(logging, metrics_file=file))
    return Recorder(config, run.context.is_main, 0)


def _announce(run: Run, recorder: Recorder, files: list[Inputs]) -> None:
    recorder.say(f"task {run.task.name}: {len(run.task.labels)} labels, {run.task.metric.__name__}")
    recorder.say(" ".join(f"{name}={value}" for name, value in to_dict(run.hyper).items()))
    for inputs in files:
        recorder.say(inputs.describe())


def _model(run: Run, recorder: Recorder) -> BertForTask:
    """The task model with its first weights, in fp32."""
    model = BertForTask(
        run.model_config, run.context, num_outputs=len(run.task.labels), dropout=run.hyper.hidden_dropout
    )
    initialize(model, run.config.tuning.seed)
    source = run.config.source
    if source.from_scratch:
        recorder.say(f"weights: random (shape and vocabulary of {run.pretrained.folder})")
        return model
    missing = load_weights(model, run.pretrained, fine_tuned=source.eval_only, context=run.context)
    recorder.say(f"weights: {source.pretrained_checkpoint}" + (f"; random: {', '.join(missing)}" if missing else ""))
    return model


def _train(run: Run, model: BertForTask, train: Encoded, dev: Encoded, recorder: Recorder) -> dict[str, Any]:
    """Train, evaluate, keep the best checkpoint; the model ends with the best weights. Returns their dev scores."""
    tuning, hyper, context = run.config.tuning, run.hyper, run.context
    settings = optimizer_config(tuning, hyper)
    optimizer = Optimizer(model, settings, run.config.precision, context)
    examples = len(train.labels)
    total = examples * hyper.epochs
    schedule = Schedule(config=settings, warmup=int(hyper.lr_warmup_fraction * total), decay=total)
    epoch_steps = -(-examples // hyper.global_batch_size)
    steps = epoch_steps * hyper.epochs
    best: dict[str, Any] = {}
    step = consumed = skipped = skipped_in_a_row = 0
    sums, window = torch.zeros(2, dtype=torch.float64, device=context.device), _Window()
    model.train()
    for epoch in range(hyper.epochs):
        batches = training_batches(train.lengths, batch_size=hyper.global_batch_size, seed=tuning.seed, epoch=epoch)
        if epoch == 0:
            recorder.say(f"{steps} steps; padded / real tokens {padding_ratio(train.lengths, batches):.3f}")
        for rows in batches:
            step, consumed = step + 1, consumed + len(rows)
            rate = schedule.learning_rate(consumed)
            outcome = _step(run, model, optimizer, train, rows, epoch, rate, sums)
            window.add(len(rows), int(train.lengths[rows].sum()))
            skipped += outcome.skipped
            skipped_in_a_row = skipped_in_a_row + 1 if outcome.skipped else 0
            if skipped_in_a_row == MAX_SKIPPED_STEPS:
                raise UserError(f"the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row; lower --lr")
            if step % run.config.logging.log_interval == 0 or step == steps:
                loss, hits = context.data.all_reduce_(sums).tolist()
                record = {
                    "split": "train",
                    "step": step,
                    "epoch": consumed / examples,
                    "consumed_samples": consumed,
                    "loss": loss / window.samples,
                    "accuracy": hits / window.samples,
                    "learning_rate": rate,
                    "grad_norm": outcome.grad_norm,
                    "skipped_steps": skipped,
                    **window.rates(),
                }
                recorder.write(record, _train_line(record, steps))
                sums.zero_()
                window = _Window()
            if step % (tuning.eval_interval or epoch_steps) == 0 or step == steps:
                started = time.perf_counter()
                found = {**_evaluate(run, model, dev), "step": step, "epoch": consumed / examples}
                record = {"split": "dev", **found, "learning_rate": rate, "seconds": time.perf_counter() - started}
                recorder.write(record, f"dev step {step}/{steps} | {_scores_line(run, found)}")
                if not best or found[run.task.metric.__name__] > best[run.task.metric.__name__]:
                    best = found
                    _save_best(run, optimizer, best)
                window.pause(time.perf_counter() - started)
    _load_best(run, optimizer, best["step"])
    return best


def _step(
    run: Run,
    model: BertForTask,
    optimizer: Optimizer,
    train: Encoded,
    rows: np.ndarray,
    epoch: int,
    learning_rate: float,
    sums: torch.Tensor,
) -> Outcome:
    """One step over a global batch, of which this rank takes every n-th row. Adds its loss and hits to `sums`."""
    context, tuning = run.context, run.config.tuning
    first_head, heads = local_heads(run.model_config.num_attention_heads, context)
    # The rows of a batch are sorted by length: in turn, ranks get equal work.
    own = rows[context.data.rank :: context.data.size]
    size = tuning.micro_batch_size or max(len(own), 1)
    optimizer.zero_gradients()
    for start in range(0, len(own), size):
        batch = train.batch(own[start : start + size])
        samples = torch.from_numpy(batch.rows + epoch * len(train.labels)).to(context.device)
        keys = dropout_keys(
            tuning.seed, samples, sequence=batch.tokens.shape[1], first_head=first_head, heads=heads
        )
        logits = task_logits(model, batch, context, keys)
        labels = torch.from_numpy(batch.labels).to(context.device)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (loss * (optimizer.loss_scale.scale / len(rows))).backward()
        sums += torch.stack([loss.detach().double(), (logits.argmax(1) == labels).sum().double()])
    return optimizer.step(learning_rate)


def _evaluate(run: Run, model: BertForTask, dev: Encoded) -> dict[str, Any]:
    logits = predict(
        model, dev, classes=len(run.task.labels), batch_size=run.evaluation_batch_size, context=run.context
    )
    return scores(run.task, logits, dev.labels)


def _save_best(run: Run, optimizer: Optimizer, best: dict[str, Any]) -> None:
    """Save the weights to OUTPUT/best, then remove the checkpoint that was best before."""
    folder = run.output / "best"
    config = to_dict(run.config)
    config |= {
        "model": to_dict(run.model_config),
        "data": {"tokenizer_type": run.pretrained.tokenizer.kind, "seq_length": run.hyper.seq_length},
        "task": description(run.task, run.hyper.seq_length),
        "hyperparameters": to_dict(run.hyper),
    }
    kept = save_checkpoint(
        folder,
        best["step"],
        model={name: NamedTensor(tensor=t, shard=shard) for name, (t, shard) in optimizer.weights().items()},
        optimizer={},
        config=config,
        train_state=best,
        extra_files=run.pretrained.tokenizer_files,
        context=run.context,
    )
    if run.context.is_main:
        for old in folder.glob("iter_*"):
            if old != kept:
                shutil.rmtree(old, ignore_errors=True)


def _load_best(run: Run, optimizer: Optimizer, step: int) -> None:
    into = {name: NamedTensor(tensor=t, shard=shard) for name, (t, shard) in optimizer.weights().items()}
    path = run.output / "best" / f"iter_{step:07d}" / "model.safetensors"
    load_tensors(path, into, what="weights", context=run.context)
    optimizer.publish()


def _write_submission(run: Run, model: BertForTask, test: Inputs, recorder: Recorder) -> None:
    logits = predict(
        model, test.encoded, classes=len(run.task.labels), batch_size=run.evaluation_batch_size, context=run.context
    )
    labels = [run.task.labels[index] for index in logits.argmax(1)]
    path = run.output / submission_name(run.task, test.path)
    if run.context.is_main:
        write_text(path, submission_text(test.examples, labels))
    recorder.say(f"{path}: {len(labels)} predictions for {test.path}")


class _Window:
    """Samples, tokens and time since the last record."""

    def __init__(self) -> None:
        self.samples = self.tokens = self.steps = 0
        self._start = time.perf_counter()

    def add(self, samples: int, tokens: int) -> None:
        self.samples, self.tokens, self.steps = self.samples + samples, self.tokens + tokens, self.steps + 1

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self._start += seconds

    def rates(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        return {
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "step_seconds": seconds / self.steps,
        }


def _scores_line(run: Run, found: dict[str, Any]) -> str:
    name = run.task.metric.__name__
    return f"{name} {found[name]:.4f} (majority {found['majority_accuracy']:.4f}) | loss {found['loss']:.4f}"


def _train_line(record: dict[str, Any], steps: int) -> str:
    left = (steps - record["step"]) * record["step_seconds"]
    return (
        f"step {record['step']}/{steps} | epoch {record['epoch']:.2f} | loss {record['loss']:.4f} "
        f"({record['accuracy']:.1%}) | lr {record['learning_rate']:.3e} | norm {record['grad_norm']:.3f} "
        f"| {record['samples_per_second']:.0f} samples/s | ETA {clock(left)}"
    )
