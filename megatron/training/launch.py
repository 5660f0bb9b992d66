"""Start-up of pre-training, phase by phase: processes, vocabulary, data, model, checkpoint; then the loop."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron import __version__
from megatron.checkpoint.store import check_writable
from megatron.config import PretrainConfig, to_dict, with_vocabulary
from megatron.data.batches import Split, open_splits
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.errors import UserError
from megatron.model.parts import split_of
from megatron.mpu.context import ParallelContext, launched_processes
from megatron.optimizer.schedule import total_samples
from megatron.training.evaluation import evaluation_samples
from megatron.training.loop import Run, evaluate_only, train
from megatron.training.records import Recorder
from megatron.training.signals import watch_signals
from megatron.training.state import Origin, Progress, find_origin, load
from megatron.training.step import Pretraining, build, new_optimizer, num_parameters


def pretrain(config: PretrainConfig) -> None:
    """Pre-train as the configuration says. Raises `UserError` on all ranks for what a user can mend."""
    config = config.resolved(world_size=launched_processes())
    _check_device(config)
    context = ParallelContext.from_environment(
        tensor=config.parallel.tensor_model_parallel_size,
        pipeline=config.parallel.pipeline_model_parallel_size,
        sequence_parallel=config.parallel.sequence_parallel,
        backend=config.parallel.distributed_backend,
        timeout_minutes=config.parallel.distributed_timeout_minutes,
    )
    stop = watch_signals(config.training.exit_duration_in_mins)
    with _phase("vocabulary", context), context.together():
        tokenizer = load_tokenizer(config.data.tokenizer_type, config.data.vocab_file, config.data.tokenizer_model)
        config = dataclasses.replace(config, model=with_vocabulary(config.model, tokenizer.vocab_size))
    if config.checkpoint.save is not None:
        check_writable(Path(config.checkpoint.save), context)
    origin = find_origin(config.checkpoint, context)
    with _phase("data", context), context.together():
        splits = open_data(config, tokenizer)
    with _phase("model", context):
        model = build(config.model, config.parallel, config.precision, config.training.seed, context)
        optimizer = new_optimizer(model.chunks, config.optimizer, config.precision, config.parallel, context)
    progress = Progress()
    lacking: tuple[str, ...] = ()
    if origin is not None:
        with _phase(f"checkpoint {origin.path}", context):
            with context.together():
                _check_vocabulary(origin.path, config)
            progress, lacking = load(origin, optimizer, context)
    recorder = _open_records(config, context, progress)
    for line in _summary(config, context, splits, model, origin, progress, lacking):
        recorder.say(line)
    run = Run(
        config=config,
        context=context,
        model=model,
        optimizer=optimizer,
        splits=splits,
        recorder=recorder,
        stop=stop,
        extra_files=_vocabulary_files(config),
    )
    (evaluate_only if config.training.skip_train else train)(run, progress)
    recorder.close()
    context.close()


@contextmanager
def _phase(name: str, context: ParallelContext) -> Iterator[None]:
    """Say on the main rank what start-up is doing, and how long it took."""
    started = time.perf_counter()
    yield
    if context.is_main:
        print(f"start-up: {name} ({time.perf_counter() - started:.1f} s)", flush=True)


def _check_device(config: PretrainConfig) -> None:
    if config.precision.fp16 and not torch.cuda.is_available():
        raise UserError("--fp16 needs a CUDA device; on a CPU use --bf16 or fp32")


def open_data(config: PretrainConfig, tokenizer: Tokenizer) -> dict[str, Split]:
    """The splits of a run's corpora. Raises `UserError` if they cannot be used."""
    data = config.data
    splits = open_splits(
        data_path=data.data_path,
        split=data.split,
        seq_length=data.seq_length,
        mask_prob=data.mask_prob,
        short_seq_prob=data.short_seq_prob,
        max_ngrams=data.max_ngrams,
        binary_head=not config.model.bert_no_binary_head,
        seed=config.training.seed,
        tokenizer=tokenizer,
        cache_path=data.data_cache_path,
    )
    if "train" not in splits and not config.training.skip_train:
        raise UserError(f"--split {data.split} leaves no documents for training")
    return splits


def _vocabulary_files(config: PretrainConfig) -> dict[str, Path]:
    """The tokenizer's file as it is kept in checkpoints."""
    if config.data.tokenizer_type == "SentencePieceTokenizer":
        assert config.data.tokenizer_model is not None
        return {"tokenizer.model": Path(config.data.tokenizer_model)}
    assert config.data.vocab_file is not None
    return {"vocab.txt": Path(config.data.vocab_file)}


def _check_vocabulary(checkpoint: Path, config: PretrainConfig) -> None:
    """Weights are worth nothing with another vocabulary: rows of the word table would mean other words."""
    for name, path in _vocabulary_files(config).items():
        kept = checkpoint / name
        if kept.exists() and _lines(kept) != _lines(path):
            raise UserError(
                f"{path} is not the vocabulary of the checkpoint {checkpoint} ({kept} differs); train on with "
                f"--vocab-file {kept}, on data preprocessed with it"
            )


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split()


def _open_records(config: PretrainConfig, context: ParallelContext, progress: Progress) -> Recorder:
    with context.together():
        recorder = Recorder(config.logging, to_dict(config), is_main=context.is_main, step=progress.step)
        if context.is_main and config.checkpoint.save is not None:
            path = Path(config.checkpoint.save) / "config.json"
            path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
    return recorder


def _layout_lines(config: PretrainConfig, context: ParallelContext) -> Iterator[str]:
    """The layout and the batch arithmetic."""
    layout, parallel, train = context.layout, config.parallel, config.training
    yield (
        f"layout: {layout.world_size} processes = tensor {layout.tensor} x pipeline {layout.pipeline} x "
        f"data {layout.data}"
        + (", sequence parallel" if context.sequence_parallel else "")
        + (", distributed optimizer" if parallel.use_distributed_optimizer else "")
    )
    if layout.pipeline > 1:
        split = ", ".join(map(str, split_of(config.model, parallel)))
        yield f"pipeline: {parallel.schedule(config.model)}, layers of its parts: {split}"
    micro_batches = train.global_batch_size // (train.micro_batch_size * layout.data)
    yield (
        f"batch: {train.global_batch_size} = {train.micro_batch_size} samples x {micro_batches} micro-batches x "
        f"{layout.data} data-parallel"
    )


def _summary(
    config: PretrainConfig,
    context: ParallelContext,
    splits: dict[str, Split],
    model: Pretraining,
    origin: Origin | None,
    progress: Progress,
    lacking: tuple[str, ...],
) -> Iterator[str]:
    """What is about to happen: configuration, machine, data, model, start."""
    yield "configuration:"
    for section, values in to_dict(config).items():
        yield f"  {section}: " + ", ".join(f"{k}={v}" for k, v in values.items() if v is not None)
    yield (
        f"megatron {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{context.device.type}, {torch.get_num_threads()} threads a process"
    )
    yield from _layout_lines(config, context)
    parameters = sum(context.pipeline.gather_objects(num_parameters(model.chunks, context)))
    yield f"model: {parameters:,} parameters in {config.precision.dtype}"
    wanted = {"train": total_samples(config)}
    for name, split in splits.items():
        for line in split.describe():
            yield f"data: {line}"
        samples = wanted.get(name) or evaluation_samples(split, config)
        epochs = ", ".join(f"{value:.2f}" for value in split.epochs(samples))
        yield f"data: {name}: {samples:,} samples are {epochs} epochs"
    if origin is None:
        yield "start: from random weights"
    elif origin.resumed and progress.step:
        yield f"start: continuing {origin.path} at step {progress.step}, {progress.consumed_samples:,} samples consumed"
    else:
        yield f"start: weights of {origin.path}, step 0"
    if lacking:
        yield f"start: initialised, because the checkpoint lacks them: {', '.join(lacking)}"
