"""A model for a task in this process: its parts of the encoder, and how batches go through them in any layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from megatron.config import ModelConfig, ParallelConfig, PrecisionConfig
from megatron.model import BertForPrompts, BertForTask
from megatron.model.parts import Recompute, own_parts
from megatron.mpu.context import ParallelContext
from megatron.mpu.pipeline.executor import Pipeline, boundary_shape, new_pipeline
from megatron.mpu.random import DropoutKeys
from megatron.mpu.sharding import initialize
from megatron.optimizer.adamw import DTYPES
from megatron.tasks.encode import TaskBatch
from megatron.training.model import lengths_on_device, on_device


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """The chunks of this rank's pipeline stage. Batches must be `width_multiple` tokens wide."""

    config: ModelConfig
    chunks: Sequence[BertForTask | BertForPrompts]
    pipeline: Pipeline

    @property
    def width_multiple(self) -> int:
        """What the padded width of a batch must be a multiple of."""
        context = self.pipeline.context
        return context.tensor.size if context.sequence_parallel else 1


def build(
    config: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    context: ParallelContext,
    *,
    head: Literal["sequence", "token", "masked"],
    num_outputs: int,
    frozen_layers: int | None = None,
    seed: int,
) -> TaskModel:
    """The chunks of this rank's stage with random weights, fp32. frozen_layers: as in `ModelPart`."""
    recompute = Recompute.of(parallel)
    parts = [replace(part, frozen_layers=frozen_layers) for part in own_parts(config, parallel, context.pipeline.rank)]
    chunks = [
        BertForPrompts(config, context, part, recompute)
        if head == "masked"
        else BertForTask(
            config,
            context,
            part,
            recompute,
            num_outputs=num_outputs,
            per_token=head == "token",
            dropout=config.hidden_dropout,
        )
        for part in parts
    ]
    for chunk in chunks:
        initialize(chunk, seed)
    pipeline = new_pipeline(chunks, parallel.schedule(config), DTYPES[precision.dtype], context)
    return TaskModel(config=config, chunks=chunks, pipeline=pipeline)


def train(
    model: TaskModel,
    batches: Sequence[TaskBatch],
    loss: Callable[[Tensor, TaskBatch], Tensor],
    keys: Callable[[TaskBatch], DropoutKeys],
) -> None:
    """Forward and backward of micro-batches. loss: of the outputs (fp32) of one; keys: its dropout's."""

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        output = _call(model, chunk, batches[number], keys(batches[number]), x)
        return loss(output, batches[number]) if model.chunks[chunk].part.has_heads else output

    model.pipeline.train(len(batches), forward, lambda number: _boundary(model, batches[number]))


def evaluate(model: TaskModel, batches: Sequence[TaskBatch], take: Callable[[Tensor, TaskBatch], None]) -> None:
    """Forward of micro-batches without dropout; the last stage hands the outputs of each to `take`."""

    def forward(chunk: int, number: int, x: Tensor | None) -> Tensor:
        output = _call(model, chunk, batches[number], None, x)
        if model.chunks[chunk].part.has_heads:
            take(output, batches[number])
        return output

    model.pipeline.evaluate(len(batches), forward, lambda number: _boundary(model, batches[number]))


def _call(model: TaskModel, chunk: int, batch: TaskBatch, keys: DropoutKeys | None, x: Tensor | None) -> Tensor:
    device = model.pipeline.context.device
    lengths = lengths_on_device(batch.lengths, batch.tokens.shape[1], device)
    inputs = [on_device(batch.tokens, device), on_device(batch.token_types, device), lengths]
    if batch.masks is not None and batch.candidates is not None:
        inputs += [on_device(batch.masks, device), on_device(batch.candidates, device)]
    output: Tensor = model.chunks[chunk](*inputs, keys=keys, x=x)
    return output


def _boundary(model: TaskModel, batch: TaskBatch) -> tuple[int, ...]:
    samples, width = batch.tokens.shape
    return boundary_shape(width, samples, model.config.hidden_size, model.pipeline.context)
