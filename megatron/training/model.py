"""A model for pre-training in this process: its parts, their optimizer, and a micro-batch through a part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.model import BertEncoder, BertForPreTraining, LossSums
from megatron.model.parts import Recompute, own_parts
from megatron.mpu.context import ParallelContext
from megatron.mpu.grads import full_rate
from megatron.mpu.layers import LayerNorm
from megatron.mpu.pipeline.executor import Pipeline, boundary_shape, new_pipeline
from megatron.mpu.random import DropoutKeys
from megatron.mpu.sharding import initialize, shard_of
from megatron.optimizer.adamw import DTYPES, Optimizer


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A stage's part of a model for pre-training, and how steps go through it."""

    config: ModelConfig
    chunks: Sequence[BertForPreTraining]
    pipeline: Pipeline


def build(
    config: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    seed: int,
    context: ParallelContext,
    *,
    traced: bool = False,
) -> Pretraining:
    """The chunks of this rank's stage with their initial weights."""
    recompute = Recompute.of(parallel)
    parts = own_parts(config, parallel, context.pipeline.rank)
    chunks = [BertForPreTraining(config, context, part, recompute) for part in parts]
    for chunk in chunks:
        initialize(chunk, seed)
    return Pretraining(
        config=config,
        chunks=chunks,
        pipeline=new_pipeline(chunks, parallel.schedule(config), DTYPES[precision.dtype], context, traced=traced),
    )


def compile_layers(chunks: Sequence[BertEncoder]) -> None:
    """Compile each layer by torch.compile: its fused operations are operators that the compiler knows.

    A layer's dropout sites are constants to the compiler, so that it compiles each layer once.
    """
    layers = [layer for chunk in chunks for layer in chunk.encoder.layers.values()]
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(layers))
    for layer in layers:
        layer.compile()


def use_apex_layernorm(chunks: Sequence[BertEncoder]) -> None:
    """Let apex compute the LayerNorms, which are then fused with nothing."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, LayerNorm):
                module.norm = dataclasses.replace(module.norm, by_apex=True)


def num_parameters(chunks: Sequence[BertEncoder], context: ParallelContext) -> int:
    """Elements of the global tensors that this stage holds; a table that two stages hold counts on the first."""
    shards = [shard_of(parameter) for chunk in chunks for parameter in chunk.parameters()]
    return sum(math.prod(s.global_shape) for s in shards if not (s.tied and context.embedding.rank > 0))


def new_optimizer(
    chunks: Sequence[BertEncoder],
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    parallel: ParallelConfig,
    context: ParallelContext,
    *,
    rate_of: Callable[[str], float] = full_rate,
) -> Optimizer:
    """The optimizer of a stage's chunks. rate_of: as in `FlatParameters`."""
    return Optimizer(
        chunks,
        optimizer,
        precision,
        context,
        sharded=parallel.use_distributed_optimizer,
        bucket_size=parallel.ddp_bucket_size,
        units=[unit for chunk in chunks for unit in chunk.units()],
        rate_of=rate_of,
    )


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; a GPU copies it from pinned memory while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def lengths_on_device(lengths: np.ndarray, width: int, device: torch.device) -> Tensor | None:
    """Lengths [b] of samples, of which the longest may be `width`; None where all are, so that nothing is masked."""
    return on_device(lengths, device) if (lengths < width).any() else None


def call(
    chunk: BertForPreTraining, batch: Batch, context: ParallelContext, keys: DropoutKeys | None, x: Tensor | None
) -> LossSums | Tensor:
    """A micro-batch through a chunk: hidden states, or the loss sums of the last one."""

    def tensor(name: str) -> Tensor:
        return on_device(getattr(batch, name), context.device)

    return chunk(
        tensor("tokens"),
        tensor("token_types"),
        lengths_on_device(batch.lengths, batch.tokens.shape[1], context.device),
        tensor("masked_positions"),
        tensor("masked_labels"),
        tensor("sop_labels"),
        keys,
        x,
    )


def boundary(run: Pretraining, batch: Batch) -> tuple[int, ...]:
    """Shape of the hidden states of a micro-batch between chunks."""
    samples, sequence = batch.tokens.shape
    return boundary_shape(sequence, samples, run.config.hidden_size, run.pipeline.context)
