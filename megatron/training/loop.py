"""The training run, from its first step to its last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.config import ModelConfig, PretrainConfig
from megatron.data.batches import Batch, Split, step_batches
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.pipeline.executor import write_trace
from megatron.mpu.spans import LOADER, span
from megatron.optimizer.adamw import Optimizer
from megatron.optimizer.schedule import global_batch_size, schedule_of, total_samples
from megatron.planning.flops import pretraining_flops
from megatron.training.evaluation import evaluate
from megatron.training.graphs import MicroBatchGraph
from megatron.training.health import SpikeWatch, check_replicas, spread
from megatron.training.model import Pretraining
from megatron.training.profiling import StepProfiler
from megatron.training.records import Recorder, losses_line, losses_of, train_line
from megatron.training.saving import Saver
from megatron.training.signals import StopFlag
from megatron.training.state import Progress
from megatron.training.step import Step, Totals, train_step
from megatron.training.throughput import Peak, throughput_of

_MOST_SAMPLES = 8  # whose documents a message names


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run consists of, built by `megatron.training.launch`."""

    config: PretrainConfig
    context: ParallelContext
    model: Pretraining
    optimizer: Optimizer
    splits: Mapping[str, Split]
    recorder: Recorder
    stop: StopFlag
    saver: Saver
    graph: MicroBatchGraph | None


@dataclass
class Window:
    """What this process has done since the last record, and when that was, evaluations and saves left out.

    loader: seconds of waiting for batches; work: of all but waiting for other ranks. tokens, flops: of the whole run,
    without padding.
    """

    start: float = field(default_factory=time.perf_counter)
    loader: float = 0.0
    work: float = 0.0
    steps: int = 0
    tokens: float = 0.0
    flops: float = 0.0

    def add(self, model: ModelConfig, totals: Totals) -> None:
        """Count a step."""
        self.steps += 1
        self.tokens += totals.tokens
        self.flops += pretraining_flops(
            model,
            tokens=totals.tokens,
            squared_lengths=totals.squared_lengths,
            masked=totals.masked,
            samples=totals.samples,
        )


def train(run: Run, progress: Progress, peak: Peak) -> None:
    """Train from `progress` to the end of the run, with evaluations, records and checkpoints on the way.

    peak: of the devices, for the records.

    Raises `UserError` after --max-skipped-steps steps in a row that were not finite.
    """
    config, context, options = run.config, run.context, run.config.training
    schedule, total = schedule_of(config), total_samples(config)
    saved = progress.step
    spikes, activity, window = SpikeWatch(threshold=options.spike_threshold), context.world.activity, Window()
    profiler, stopping = StepProfiler(config.logging, context, run.recorder.say), False
    with _closing(_batches(run, progress)) as batches:
        while progress.consumed_samples < total and not stopping:
            rate = schedule.learning_rate(progress.consumed_samples)
            with profiler.step(progress.step + 1):
                began = time.perf_counter() - activity.waited
                with span(LOADER):
                    batch = next(batches)
                window.loader += time.perf_counter() - activity.waited - began
                progress.step += 1
                context.doing(f"step {progress.step}")
                progress.consumed_samples += global_batch_size(config, progress.consumed_samples)
                step = train_step(run.model, run.optimizer, batch, rate, seed=options.seed, graph=run.graph)
                window.work += time.perf_counter() - activity.waited - began
            window.start += profiler.pause
            window.add(run.model.config, step.totals)
            _count(progress, step.totals, step.outcome.skipped)
            _look_for_spikes(run, progress, spikes, step)
            if options.check_replicas_interval and progress.step % options.check_replicas_interval == 0:
                run.optimizer.flat.wait_for_weights()
                check_replicas(run.model.chunks, context)
            _give_up_if_stuck(run, progress)
            last = progress.consumed_samples >= total
            if progress.step % config.logging.log_interval == 0 or last:
                _record(run, progress, total, step.outcome.grad_norm, rate, window, peak)
                _trace(run, step)
                progress.window, window = Totals(), Window()
            stopping, save_now, writing = context.world.any_of(
                [run.stop.asked, run.stop.save, run.saver.busy], context.device
            )
            if run.saver.writing and not writing:
                _publish(run)
            if not stopping and options.eval_interval and (progress.step % options.eval_interval == 0 or last):
                paused = time.perf_counter()
                stopping = not _evaluate(run, "valid", progress)
                window.start += time.perf_counter() - paused
            stopping |= options.exit_interval is not None and progress.step % options.exit_interval == 0
            interval = config.checkpoint.save_interval
            ends = stopping or last
            if config.checkpoint.save and (ends or save_now or (interval and progress.step % interval == 0)):
                paused = time.perf_counter()
                _save(run, progress, in_background=config.checkpoint.async_save and not ends)
                run.stop.save = False
                saved = progress.step
                window.start += time.perf_counter() - paused
    profiler.finish()
    if stopping and progress.consumed_samples < total:
        where = f"saved step {saved}" if config.checkpoint.save else "not saved: no --save FOLDER"
        run.recorder.say(f"stopped at step {progress.step} of the run as asked; {where}")
    else:
        _evaluate(run, "test", progress)


def evaluate_only(run: Run, progress: Progress) -> None:
    """--skip-train: evaluate the validation and test splits."""
    for name in ("valid", "test"):
        _evaluate(run, name, progress)


def _batches(run: Run, progress: Progress) -> Iterator[list[Batch]]:
    return step_batches(
        run.splits["train"],
        global_batch_size=lambda consumed: global_batch_size(run.config, consumed),
        consumed=progress.consumed_samples,
        micro_batch_size=run.config.training.micro_batch_size,
        rank=run.context.data.rank,
        size=run.context.data.size,
        num_workers=run.config.data.num_workers,
    )


class _closing:
    """Close a generator at the end of a block, so that its threads end."""

    def __init__(self, batches: Iterator[list[Batch]]) -> None:
        self.batches = batches

    def __enter__(self) -> Iterator[list[Batch]]:
        return self.batches

    def __exit__(self, *_: object) -> None:
        self.batches.close()  # type: ignore[attr-defined]


def _count(progress: Progress, totals: Totals, skipped: bool) -> None:
    """The losses of a skipped step are not numbers to sum."""
    progress.skipped_steps += skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
    progress.window = progress.window if skipped else progress.window + totals


def _give_up_if_stuck(run: Run, progress: Progress) -> None:
    if progress.skipped_in_a_row >= run.config.training.max_skipped_steps:
        raise UserError(
            f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; the last, step "
            f"{progress.step}, had {_samples_of_step(run, progress)}; lower --lr, or raise --max-skipped-steps for a "
            "longer search of the loss scale"
        )


def _look_for_spikes(run: Run, progress: Progress, spikes: SpikeWatch, step: Step) -> None:
    totals = step.totals
    loss = totals.mlm / max(totals.masked, 1.0) + totals.sop / totals.samples
    if not step.outcome.skipped and spikes.is_spike(loss):
        run.recorder.say(
            f"loss spike at step {progress.step}: {loss:.4f}, the running mean is {spikes.mean:.4f}; "
            f"{_samples_of_step(run, progress)}"
        )


def _samples_of_step(run: Run, progress: Progress) -> str:
    """The samples of the step that was just done, and the first of their documents."""
    first = progress.consumed_samples - global_batch_size(run.config, progress.consumed_samples - 1)
    split, documents = run.splits["train"], dict[str, list[str]]()
    for sample in range(first, min(first + _MOST_SAMPLES, progress.consumed_samples)):
        for prefix, document in split.documents_of(sample):
            documents.setdefault(prefix, []).append(str(document))
    named = "; ".join(f"{', '.join(dict.fromkeys(numbers))} of {prefix}" for prefix, numbers in documents.items())
    more = ", ..." if progress.consumed_samples - first > _MOST_SAMPLES else ""
    return (
        f"samples {first} to {progress.consumed_samples - 1} (documents {named}{more}; tools/inspect_dataset.py --step "
        f"{progress.step} names all, with their lines)"
    )


def _record(
    run: Run, progress: Progress, total: int, norm: float, rate: float, window: Window, peak: Peak
) -> None:
    config, seconds = run.config, time.perf_counter() - window.start
    ranks = spread(window.work / window.steps, run.context)
    batch = global_batch_size(config, progress.consumed_samples - 1)
    record: dict[str, Any] = {
        "split": "train",
        "step": progress.step,
        "consumed_samples": progress.consumed_samples,
        **losses_of(progress.window),
        "learning_rate": rate,
        "grad_norm": norm,
        "loss_scale": run.optimizer.loss_scale.scale,
        "skipped_steps": progress.skipped_steps,
        "global_batch_size": batch,
        **throughput_of(
            seconds=seconds,
            steps=window.steps,
            tokens=window.tokens,
            flops=window.flops,
            loader_seconds=window.loader,
            peak=peak,
            context=run.context,
        ),
    }
    if ranks is not None:
        record |= {
            "slowest_rank": ranks.slowest_rank,
            "slowest_rank_seconds": ranks.most,
            "median_rank_seconds": ranks.median,
        }
    left = (total - progress.consumed_samples) / config.training.global_batch_size
    end = progress.step + -(-(total - progress.consumed_samples) // config.training.global_batch_size)
    run.recorder.write(record, train_line(record, f"{progress.step}/{end}", left * record["step_seconds"]))
    warning = None if ranks is None else ranks.warning(run.context)
    if warning:
        run.recorder.say(warning)


def _trace(run: Run, step: Step) -> None:
    """Write the trace of a step where --pipeline-trace wants it: one file a stage."""
    context, folder = run.context, run.config.logging.pipeline_trace
    if folder is not None and context.data.rank == 0 and context.tensor.rank == 0:
        write_trace(step.trace, Path(folder), context.pipeline.rank)


def _evaluate(run: Run, name: str, progress: Progress) -> bool:
    """Evaluate a split, if there is one and --eval-iters asks for it. False if a stop was asked for meanwhile."""
    if name not in run.splits or not run.config.training.eval_iters:
        return True
    started = time.perf_counter()
    totals = evaluate(run.model, run.splits[name], run.config, run.context, run.stop)
    if totals is None:
        return False
    seconds = time.perf_counter() - started
    record = {
        "split": name,
        "step": progress.step,
        "consumed_samples": progress.consumed_samples,
        **losses_of(totals),
        "tokens_per_second": totals.tokens / seconds,
        "evaluation_samples": int(totals.samples),
        "evaluation_seconds": seconds,
    }
    run.recorder.write(
        record, f"{name} at step {progress.step} | {int(totals.samples)} samples | {losses_line(record)}"
    )
    return True


def _save(run: Run, progress: Progress, *, in_background: bool) -> None:
    if run.saver.writing:
        _publish(run)
    run.recorder.say(run.saver.save(progress, run.optimizer, in_background=in_background))


def _publish(run: Run) -> None:
    """Publish what was written in the background. A failure costs this checkpoint, not the run."""
    try:
        run.recorder.say(run.saver.finish())
    except UserError as error:
        run.recorder.say(f"warning: {error}; training goes on, the checkpoints before it are as they were")
