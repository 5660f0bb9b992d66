"""Start-up of pre-training, phase by phase: processes, vocabulary, data, model, checkpoint; then the loop."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron.checkpoint.lock import only_writer
from megatron.checkpoint.store import check_writable, read_config, read_train_state
from megatron.config import PretrainConfig, to_dict, with_vocabulary
from megatron.data.batches import Split, open_splits
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext, launched_processes
from megatron.native import _C
from megatron.ops import apex
from megatron.planning.memory import memory_lines
from megatron.training.agreement import check_agreement, check_start, data_facts
from megatron.training.changes import check_changes
from megatron.training.graphs import new_graph, use_own_stream
from megatron.training.loop import Run, evaluate_only, train
from megatron.training.model import build, compile_layers, new_optimizer, use_apex_layernorm
from megatron.training.profiling import check_profile
from megatron.training.records import Recorder
from megatron.training.report import start_report
from megatron.training.saving import Saver
from megatron.training.signals import watch_signals
from megatron.training.state import Progress, find_origin, load
from megatron.training.throughput import find_peak


def pretrain(config: PretrainConfig) -> None:
    """Pre-train as the configuration says. Raises `UserError` on all ranks for what a user can mend."""
    config = config.resolved(world_size=launched_processes())
    _check_device(config)
    with ParallelContext.from_environment(config.parallel, agree=lambda job: check_start(job, config)) as context:
        folder = None if config.checkpoint.save is None else Path(config.checkpoint.save)
        if folder is not None:
            check_writable(folder, context)
        with only_writer(folder, context):
            _pretrain(config, context)


def _pretrain(config: PretrainConfig, context: ParallelContext) -> None:
    if context.is_main and context.job is not None:
        print(f"start-up: {context.world.size} ranks are here and agree ({context.backend})", flush=True)
    stop = watch_signals(config.training.exit_duration_in_mins, context)
    with _phase("vocabulary", context), context.together():
        tokenizer = load_tokenizer(config.data.tokenizer_type, config.data.vocab_file, config.data.tokenizer_model)
        config = dataclasses.replace(config, model=with_vocabulary(config.model, tokenizer.vocab_size))
    with _phase("folders", context):
        if config.logging.pipeline_trace is not None:
            check_writable(Path(config.logging.pipeline_trace), context, flag="--pipeline-trace")
        check_profile(config.logging, context)
        origin = find_origin(config.checkpoint, context)
    with _phase("data", context), context.together():
        splits = open_data(config, tokenizer)
    data = data_facts(tokenizer, splits)
    check_agreement(context.job, "data", data)
    with _phase("model", context):
        if context.device.type == "cpu":
            _C.keep_memory()
        if config.training.cuda_graphs:
            use_own_stream(context.device)
        traced = config.logging.pipeline_trace is not None
        model = build(config.model, config.parallel, config.precision, config.training.seed, context, traced=traced)
        optimizer = new_optimizer(model.chunks, config.optimizer, config.precision, config.parallel, context)
        if config.training.layernorm == "apex":
            use_apex_layernorm(model.chunks)
        if config.training.compile:
            compile_layers(model.chunks)
        graph = new_graph(model, config) if config.training.cuda_graphs else None
    progress = Progress()
    lacking: tuple[str, ...] = ()
    changes: list[str] = []
    if origin is not None:
        with _phase(f"checkpoint {origin.path}", context):
            with context.together():
                _check_vocabulary(origin.path, config)
                state = read_train_state(origin.path)
                if origin.resumed and state.get("step"):  # converted weights are not yet a run
                    changes = check_changes(read_config(origin.path), state.get("data"), config, data)
            progress, lacking = load(origin, optimizer, context)
    with _phase("records", context):
        recorder = _open_records(config, context, progress)
        peak = None if config.training.skip_train else find_peak(config.precision.dtype, context)
    saver = Saver(config, data, {name: path.read_bytes() for name, path in _vocabulary_files(config).items()}, context)
    device = memory_lines(config, context) + ([] if peak is None else [peak.describe()])
    for line in start_report(config, context, splits, model, origin, progress, lacking, device):
        recorder.say(line)
    for line in changes:
        recorder.say(f"start: {line}")
    run = Run(
        config=config,
        context=context,
        model=model,
        optimizer=optimizer,
        splits=splits,
        recorder=recorder,
        stop=stop,
        saver=saver,
        graph=graph,
    )
    try:
        if peak is None:
            evaluate_only(run, progress)
        else:
            train(run, progress, peak)
    finally:
        saver.close()
    recorder.close()


@contextmanager
def _phase(name: str, context: ParallelContext) -> Iterator[None]:
    """A phase of start-up, which all ranks finish together; the main rank says how long it took."""
    started = time.perf_counter()
    with context.phase(name):
        yield
    if context.is_main:
        print(f"start-up: {name} ({time.perf_counter() - started:.1f} s)", flush=True)


def _check_device(config: PretrainConfig) -> None:
    on_gpu = torch.cuda.is_available()
    if config.precision.fp16 and not on_gpu:
        raise UserError("--fp16 needs a CUDA device; on a CPU use --bf16 or fp32")
    if config.training.cuda_graphs and not on_gpu:
        raise UserError("--cuda-graphs needs a CUDA device; leave it out on a CPU")
    if config.optimizer.optimizer == "apex-adam":
        apex.check("--optimizer apex-adam", on_gpu=on_gpu)
    if config.training.layernorm == "apex":
        apex.check("--layernorm apex", on_gpu=on_gpu)


def open_data(config: PretrainConfig, tokenizer: Tokenizer) -> dict[str, Split]:
    """The splits of a run's corpora. Raises `UserError` if they cannot be used."""
    data = config.data
    splits = open_splits(
        data,
        seed=config.training.seed,
        tokenizer=tokenizer,
        # Less than the limit of the phase, so that the message names the process that builds.
        wait_seconds=54.0 * config.parallel.startup_timeout_minutes,
    )
    if "train" not in splits and not config.training.skip_train:
        where = f"--split {data.split} leaves" if data.data_path else "without --train-data-path there are"
        raise UserError(f"{where} no documents for training")
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
