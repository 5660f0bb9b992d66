"""What ranks really hold, communicate and keep."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.random import dropout_keys
from megatron.ops import attention
from megatron.optimizer.adamw import DTYPES, Optimizer
from megatron.planning.case import Case
from megatron.training.model import build, new_optimizer

SHAPE = ModelConfig(
    num_layers=4,
    hidden_size=96,
    num_attention_heads=6,
    ffn_hidden_size=384,
    max_position_embeddings=64,
    vocab_size=1001,
)


def case(
    options: dict[str, Any],
    *,
    model: ModelConfig = SHAPE,
    data: int = 1,
    dtype: Any = "fp32",
    samples: int = 4,
    sequence: int = 64,
    masked: int = 40,
    micro_batches: int = 4,
    on_gpu: bool = False,
) -> Case:
    """A case of small buckets, so that there are several. options: of `ParallelConfig`."""
    parallel = ParallelConfig(**{"ddp_bucket_size": 50_000, **options})
    layout = Layout(
        pipeline=parallel.pipeline_model_parallel_size, data=data, tensor=parallel.tensor_model_parallel_size
    )
    return Case(
        model=model,
        parallel=parallel,
        layout=layout,
        on_gpu=on_gpu,
        dtype=dtype,
        samples=samples,
        sequence=sequence,
        masked=masked,
        micro_batches=micro_batches,
    )


def in_layout(context: ParallelContext, what: Case) -> ParallelContext:
    """The context of a rank as the case wants it."""
    return dataclasses.replace(context, sequence_parallel=what.sequence_parallel)


def precision_of(what: Case) -> PrecisionConfig:
    """The options of the case's number format."""
    return PrecisionConfig(bf16=what.dtype == "bf16", fp16=what.dtype == "fp16")


def built(context: ParallelContext, what: Case) -> tuple[Any, Optimizer]:
    """The rank's model and optimizer, as training makes them."""
    context = in_layout(context, what)
    model = build(what.model, what.parallel, precision_of(what), 1, context)
    return model, new_optimizer(model.chunks, OptimizerConfig(lr=1.0), precision_of(what), what.parallel, context)


def held_bytes(context: ParallelContext, what: Case) -> tuple[int, dict[str, int]]:
    """The rank's pipeline stage, and the bytes of the storages that its optimizer owns."""
    return context.pipeline.rank, bytes_of(built(context, what)[1])


def bytes_of(optimizer: Optimizer) -> dict[str, int]:
    """Bytes of an optimizer's buffers; master weights that are the weights themselves count once."""
    seen: set[int] = set()

    def size(tensors: list[Tensor]) -> int:
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
        new = {s._cdata: s.nbytes() for s in storages.values() if s._cdata not in seen}
        seen.update(new)
        return sum(new.values())

    buckets = optimizer.flat.buckets
    return {
        "weights": size([bucket.weights for bucket in buckets]),
        "gradients": size([bucket.gradients for bucket in buckets]),
        "masters": size(optimizer.masters),
        "moments": size([*optimizer.exp_avg, *optimizer.exp_avg_sq]),
    }


def batch_of(what: Case) -> dict[str, Tensor]:
    """Random inputs of one micro-batch with padding."""
    torch.manual_seed(1)
    shape = what.samples, what.sequence
    lengths = torch.full((what.samples,), what.sequence)
    lengths[0] -= 3
    return {
        "tokens": torch.randint(what.model.vocab_size, shape),
        "token_types": torch.randint(2, shape),
        "lengths": lengths,
        "masked_positions": torch.randint(what.tokens, (what.masked,)),
        "masked_labels": torch.randint(what.model.vocab_size, (what.masked,)),
        "sop_labels": torch.randint(2, (what.samples,)),
    }


def kept_bytes(context: ParallelContext, what: Case) -> tuple[int, list[int]]:
    """The rank's pipeline stage, and what autograd keeps of one micro-batch's forward through each of its parts."""
    context = in_layout(context, what)
    if what.on_gpu:  # its attention, of operations that are the CPU's here
        attention.is_compiled_for_cpu = lambda x: False  # type: ignore[assignment]
    model, _ = built(context, what)
    batch = batch_of(what)
    keys = None
    if what.model.hidden_dropout or what.model.attention_dropout:
        keys = dropout_keys(
            5,
            torch.arange(what.samples),
            sequence=what.sequence,
            heads=what.model.num_attention_heads,
            context=context,
        )
    kept = []
    for chunk in model.chunks:
        x = None
        if not chunk.part.has_embeddings:
            shape = what.rows // what.samples, what.samples, what.model.hidden_size
            x = torch.randn(shape, dtype=DTYPES[what.dtype]).requires_grad_()
        own = {p.untyped_storage()._cdata for p in chunk.parameters()}
        storages: dict[int, Tensor] = {}

        def keep(tensor: Tensor, own: set[int] = own, storages: dict[int, Tensor] = storages) -> Tensor:
            if tensor.untyped_storage()._cdata not in own:
                storages[tensor.untyped_storage()._cdata] = tensor  # kept alive: no storage is counted twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = chunk(*batch.values(), keys, x)
        if isinstance(output, Tensor):
            keep(output)
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
        context.tensor.barrier()
    return context.pipeline.rank, kept
