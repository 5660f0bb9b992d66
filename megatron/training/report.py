"""What a run says of itself before its first step: machine, layout, model, data, start."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator, Mapping, Sequence

import torch

from megatron import __version__
from megatron.config import LoggingConfig, PretrainConfig, to_dict
from megatron.data.batches import Split
from megatron.model.parts import split_of
from megatron.mpu.context import ParallelContext
from megatron.mpu.pulse import plural
from megatron.native import _C
from megatron.ops.choices import choice_lines, choices
from megatron.optimizer.adamw import DTYPES
from megatron.optimizer.schedule import total_samples
from megatron.training.evaluation import evaluation_samples
from megatron.training.model import Pretraining, num_parameters
from megatron.training.state import Origin, Progress

MOST_HOSTS = 8


def start_report(
    config: PretrainConfig,
    context: ParallelContext,
    splits: Mapping[str, Split],
    model: Pretraining,
    origin: Origin | None,
    progress: Progress,
    lacking: Sequence[str],
    device: Sequence[str] = (),
) -> list[str]:
    """What is about to happen, in lines. Collective.

    lacking: parameters that the checkpoint does not have. device: lines of the estimate of memory and of the peak.
    """
    return [
        "configuration:",
        *configuration_lines(config),
        *machine_lines(context),
        *part_lines(config.logging, context),
        "operations:",
        *operation_lines(config, context),
        *layout_lines(config, context),
        *parameter_lines(config, context, model),
        *device,
        *data_lines(config, splits),
        *origin_lines(origin, progress, lacking),
    ]


def configuration_lines(config: PretrainConfig) -> Iterator[str]:
    """The resolved options, a section a line."""
    for section, values in to_dict(config).items():
        yield f"  {section}: " + ", ".join(f"{k}={v}" for k, v in values.items() if v is not None)


def machine_lines(context: ParallelContext) -> Iterator[str]:
    """Versions, devices, and which ranks are where."""
    device = context.device.type
    if device == "cuda":
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f"{name} ({memory:.0f} GiB)"
    yield (
        f"megatron {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {device}, "
        f"{torch.get_num_threads()} threads a process"
    )
    if context.job is None:
        return
    hosts: dict[str, list[int]] = {}
    for rank, process in enumerate(context.job.processes):
        hosts.setdefault(process.host, []).append(rank)
    few = [f"{host} ({plural(ranks)})" for host, ranks in list(hosts.items())[:MOST_HOSTS]]
    if len(hosts) > MOST_HOSTS:
        few.append(f"and {len(hosts) - MOST_HOSTS} more")
    yield f"nodes: {len(hosts)}: {', '.join(few)}; {context.backend} between ranks"


def part_lines(options: LoggingConfig, context: ParallelContext) -> Iterator[str]:
    """Which optional parts are active."""
    threads = "with OpenMP" if _C.openmp else "without OpenMP: one thread a process"
    shared = [g.name for g in (context.tensor, context.data, context.embedding) if g.shared is not None]
    yield f"parts: compiled helpers {threads}; reduction in shared memory: {', '.join(shared) or 'none'}"
    records = [
        "console",
        *(f"{name} {value}" for name, value in (
            ("JSON lines", options.metrics_file),
            ("TensorBoard", options.tensorboard_dir),
            ("Weights & Biases", options.wandb_project),
        ) if value is not None),
    ]  # fmt: skip
    packages = [
        f"{name} {'installed' if importlib.util.find_spec(name) else 'not installed'}"
        for name in ("tensorboard", "wandb", "apex")
    ]
    yield f"records: {', '.join(records)}; optional packages: {', '.join(packages)}"


def operation_lines(config: PretrainConfig, context: ParallelContext) -> list[str]:
    """Which implementation each operation has."""
    model = config.model
    apex = {"AdamW": config.optimizer.optimizer == "apex-adam", "LayerNorm": config.training.layernorm == "apex"}
    table = choices(
        context.device.type,
        DTYPES[config.precision.dtype],
        hidden=model.hidden_size,
        sequence=config.data.seq_length,
        attention_dropout=model.attention_dropout,
        by_apex=[operation for operation, is_asked in apex.items() if is_asked],
    )
    return choice_lines(table)


def layout_lines(config: PretrainConfig, context: ParallelContext) -> Iterator[str]:
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


def parameter_lines(config: PretrainConfig, context: ParallelContext, model: Pretraining) -> Iterator[str]:
    """Parameters of the model and of its stages. Collective."""
    stages = context.pipeline.gather_objects(num_parameters(model.chunks, context))
    of_stages = f" (stages: {', '.join(f'{stage:,}' for stage in stages)})" if len(stages) > 1 else ""
    yield f"model: {sum(stages):,} parameters in {config.precision.dtype}{of_stages}"


def data_lines(config: PretrainConfig, splits: Mapping[str, Split]) -> Iterator[str]:
    """The corpora, and how often the run goes through them."""
    wanted = {"train": total_samples(config)}
    for name, split in splits.items():
        for line in split.describe():
            yield f"data: {line}"
        samples = wanted.get(name) or evaluation_samples(split, config)
        epochs = ", ".join(f"{value:.2f}" for value in split.epochs(samples))
        yield f"data: {name}: {samples:,} samples are {epochs} epochs"


def origin_lines(origin: Origin | None, progress: Progress, lacking: Sequence[str]) -> Iterator[str]:
    """Where the run starts."""
    if origin is None:
        yield "start: from random weights"
    elif origin.resumed and progress.step:
        yield f"start: continuing {origin.path} at step {progress.step}, {progress.consumed_samples:,} samples consumed"
    else:
        yield f"start: weights of {origin.path}, step 0"
    if lacking:
        yield f"start: initialised, because the checkpoint lacks them: {', '.join(lacking)}"
