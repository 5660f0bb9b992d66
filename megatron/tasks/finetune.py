"""Fine-tuning: train on a task's training file, keep what is best on its dev file, predict its test files.

A run is a function of (checkpoint, files, hyper-parameters, seed). Losses are sums over the global batch divided by
its count, so the number of processes and the micro-batch size change nothing beyond rounding.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from megatron.checkpoint import check_writable
from megatron.checkpoint.store import CONFIG
from megatron.config import ModelConfig, to_dict
from megatron.errors import UserError
from megatron.files import write_file
from megatron.mpu.context import ParallelContext
from megatron.native import _C
from megatron.ops.choices import choice_lines, choices
from megatron.optimizer.adamw import DTYPES
from megatron.tasks.batching import padding_ratio, training_batches
from megatron.tasks.config import FinetuneConfig, TuningConfig
from megatron.tasks.descriptions import described_task
from megatron.tasks.evaluation import answers, evaluate, scores_line
from megatron.tasks.inputs import Inputs, TaskFiles, find_files, open_task, read_inputs, with_reading
from megatron.tasks.loop import train
from megatron.tasks.model import TaskModel, build
from megatron.tasks.pretrained import Pretrained, load_weights, open_pretrained
from megatron.tasks.reports import SUMMARY, error_reports, summary
from megatron.tasks.run import Run
from megatron.tasks.submission import json_text, submission_name
from megatron.tasks.task import Hyperparameters, Task
from megatron.tasks.tuning.objective import new_objective
from megatron.training.profiling import check_profile
from megatron.training.records import Recorder


def finetune(config: FinetuneConfig, context: ParallelContext) -> None:
    """Run a fine-tuning job as configured.

    Raises `UserError` on all ranks for what a user can mend: options, files, checkpoints.
    """
    config.check()
    if config.precision.fp16 and context.device.type != "cuda":
        raise UserError("--fp16 needs a CUDA device; on a CPU use --bf16 or fp32")
    output = Path(config.source.output_dir)
    with context.together():
        files = find_files(config.task, trained=not (config.source.eval_only or config.task.zero_shot))
    check_writable(output, context, flag="--output-dir")
    check_profile(config.logging, context)
    converted = output / ".pretrained"
    try:
        pretrained = open_pretrained(Path(config.source.pretrained_checkpoint), converted, context)
        _finetune(config, files, pretrained, context)
    finally:
        if context.is_main:
            shutil.rmtree(converted, ignore_errors=True)


def _finetune(config: FinetuneConfig, files: TaskFiles, pretrained: Pretrained, context: ParallelContext) -> None:
    started = time.perf_counter()
    if context.device.type == "cpu":
        _C.keep_memory()
    with context.together():
        saved = _saved_task(pretrained) if config.source.eval_only else None
        task = with_reading(open_task(config.task, files, saved), config.reading)
        hyper = config.tuning.hyperparameters(task.defaults)
        shape = _shape(pretrained.model, hyper, config.tuning)
        _check_layout(config, shape, context)
        length, tokenizer = hyper.seq_length, pretrained.tokenizer
        train_set = read_inputs(task, files.train, "train", tokenizer, length) if files.train else None
        dev_set = read_inputs(task, files.dev, "dev", tokenizer, length)
        scored_sets = [read_inputs(task, (path,), "dev", tokenizer, length) for path in files.scored]
        test_sets = [read_inputs(task, (path,), "test", tokenizer, length) for path in files.tests]
        objective = None if train_set is None else new_objective(config.tuning, task, train_set.encoded)
        if context.is_main:  # that of an earlier run is not this one's
            (Path(config.source.output_dir) / SUMMARY).unlink(missing_ok=True)
        recorder = _open_records(config, context)
    for line in _summary(config, task, hyper, train_set, (dev_set, *scored_sets, *test_sets)):
        recorder.say(line)
    dtype, dropout = DTYPES[config.precision.dtype], shape.attention_dropout
    table = choices(
        context.device.type, dtype, hidden=shape.hidden_size, sequence=length, attention_dropout=dropout
    )
    for line in ("operations:", *choice_lines(table)):
        recorder.say(line)
    run = Run(
        config=config,
        context=context,
        task=task,
        hyper=hyper,
        pretrained=pretrained,
        model=_model(config, shape, task, pretrained, recorder, context),
        recorder=recorder,
        output=Path(config.source.output_dir),
    )
    trained = None
    if train_set is None or objective is None:
        for chunk in run.model.chunks:
            chunk.to(context.device, dtype)
        best = evaluate(run, dev_set)
    else:
        trained = train(run, objective, train_set.encoded, dev_set)
        best = trained.best
    _write_results(run, best, dev_set, scored_sets, test_sets)
    recorder.close()
    text = json_text(summary(run, trained, best, time.perf_counter() - started))
    _write(run, run.output / SUMMARY, text)


def _write_results(
    run: Run, best: dict[str, Any], dev_set: Inputs, scored_sets: list[Inputs], test_sets: list[Inputs]
) -> None:
    """Scores of the dev file, which are known, and of test files with labels, reports, and predictions."""
    run.recorder.say(f"dev: {scores_line(best)}")
    _write(run, run.output / "dev_metrics.json", json_text({"task": run.task.name, **best}))
    if run.config.tuning.error_report:
        for name, text in error_reports(run.task, dev_set.examples, answers(run, dev_set)[0]).items():
            _write(run, run.output / name, text)
    for scored_set in scored_sets:
        (scored_file,) = scored_set.paths
        found = evaluate(run, scored_set)
        stem = scored_file.name.split(".")[0]
        run.recorder.say(f"{stem}: {scores_line(found)}")
        _write(run, run.output / f"{stem}_metrics.json", json_text({"task": run.task.name, **found}))
    for test_set in test_sets:
        (test_file,) = test_set.paths
        predictions, _ = answers(run, test_set)
        path = run.output / submission_name(run.task, test_file)
        _write(run, path, run.task.submission(test_set.examples, predictions))
        run.recorder.say(f"{path}: {len(predictions)} predictions for {test_file}")


def _saved_task(pretrained: Pretrained) -> Task:
    """The task of a checkpoint that is only evaluated; its inputs are as long as they were."""
    if pretrained.task is None:
        raise UserError(
            f"--eval-only: {pretrained.folder} is not fine-tuned; give the folder best/ in a fine-tuning run's output"
        )
    task, seq_length = described_task(pretrained.task, pretrained.folder / CONFIG)
    return dataclasses.replace(task, defaults=dataclasses.replace(task.defaults, seq_length=seq_length))


def _shape(model: ModelConfig, hyper: Hyperparameters, tuning: TuningConfig) -> ModelConfig:
    if tuning.freeze_layers is not None and tuning.freeze_layers > model.num_layers:
        raise UserError(f"--freeze-layers {tuning.freeze_layers}: the model has {model.num_layers} layers")
    if tuning.r_drop and hyper.hidden_dropout == hyper.attention_dropout == 0:
        raise UserError("--r-drop compares two dropouts: --hidden-dropout or --attention-dropout must be above 0")
    if hyper.seq_length > model.max_position_embeddings:
        raise UserError(
            f"--seq-length {hyper.seq_length} is above the model's {model.max_position_embeddings} positions; "
            f"give --seq-length {model.max_position_embeddings} or less"
        )
    return dataclasses.replace(model, hidden_dropout=hyper.hidden_dropout, attention_dropout=hyper.attention_dropout)


def _check_layout(config: FinetuneConfig, shape: ModelConfig, context: ParallelContext) -> None:
    problems = config.parallel.problems(shape, context.layout.world_size)
    if problems:
        raise UserError("; ".join(problems))


def _open_records(config: FinetuneConfig, context: ParallelContext) -> Recorder:
    file = config.logging.metrics_file or str(Path(config.source.output_dir) / "metrics.jsonl")
    logging = dataclasses.replace(config.logging, metrics_file=file)
    return Recorder(logging, to_dict(config), is_main=context.is_main, step=0)


def _summary(
    config: FinetuneConfig,
    task: Task,
    hyper: Hyperparameters,
    train_set: Inputs | None,
    others: tuple[Inputs, ...],
) -> list[str]:
    """What is about to happen."""
    lines = [f"task {task.name}: {task.kind.name}" + (f", {len(task.labels)} labels" if task.labels else "")]
    lines.append("hyper-parameters: " + ", ".join(f"{name}={value}" for name, value in to_dict(hyper).items()))
    if task.reading is not None:
        lines.append("reading: " + ", ".join(f"{name}={value}" for name, value in to_dict(task.reading).items()))
    if task.kind.head == "masked" and task.prompt is not None:
        lines.append(f"pattern: {task.prompt.pattern}")
    lines += [inputs.describe() for inputs in (train_set, *others) if inputs is not None]
    if train_set is not None:
        lengths = train_set.encoded.lengths
        batches = training_batches(lengths, batch_size=hyper.global_batch_size, seed=config.tuning.seed, epoch=0)
        lines.append(
            f"training: {len(batches) * hyper.epochs} steps, padded / real tokens {padding_ratio(lengths, batches):.3f}"
        )
    return lines


def _model(
    config: FinetuneConfig,
    shape: ModelConfig,
    task: Task,
    pretrained: Pretrained,
    recorder: Recorder,
    context: ParallelContext,
) -> TaskModel:
    """The task model with its first weights, fp32."""
    source = config.source
    model = build(
        shape,
        config.parallel,
        config.precision,
        context,
        head=task.kind.head,
        num_outputs=task.kind.num_outputs(task),
        frozen_layers=config.tuning.freeze_layers,
        seed=config.tuning.seed,
    )
    if source.from_scratch:
        recorder.say(f"weights: random; shape and vocabulary of {source.pretrained_checkpoint}")
        return model
    missing = load_weights(model.chunks, pretrained, fine_tuned=source.eval_only, context=context)
    recorder.say(f"weights: {source.pretrained_checkpoint}" + (f"; random: {', '.join(missing)}" if missing else ""))
    return model


def _write(run: Run, path: Path, text: str) -> None:
    """Write a result on the main rank; all ranks fail together."""
    with run.context.together():
        if run.context.is_main:
            write_file(path, text.encode())
