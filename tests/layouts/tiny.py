"""A tiny model and made-up samples, trained for a few steps in any layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.training.model import build, new_optimizer
from megatron.training.step import count, evaluation_sums, reduced, train_step

STEPS, GLOBAL_BATCH, SEQUENCE, VOCABULARY = 5, 8, 12, 51

# 12 heads: 3 a rank on 4 tensor-parallel ranks; 51 rows of vocabulary: padding on 2 and on 4.
_SIZES = {
    "num_layers": 8, "hidden_size": 24, "num_attention_heads": 12, "ffn_hidden_size": 36,
    "max_position_embeddings": 16, "vocab_size": VOCABULARY,
}  # fmt: skip
SHAPES = {
    "bert": ModelConfig(architecture="bert", task_type_vocab_size=2, **_SIZES),  # type: ignore[arg-type]
    "megatron-bert, no binary head": ModelConfig(
        architecture="megatron-bert", hidden_dropout=0.0, attention_dropout=0.0, bert_no_binary_head=True,
        **_SIZES,  # type: ignore[arg-type]
    ),
    "megatron-bert, dropout": ModelConfig(
        architecture="megatron-bert", hidden_dropout=0.2, attention_dropout=0.3, **_SIZES  # type: ignore[arg-type]
    ),
    "bert, no dropout, no binary head": ModelConfig(
        architecture="bert", hidden_dropout=0.0, attention_dropout=0.0, bert_no_binary_head=True,
        **_SIZES,  # type: ignore[arg-type]
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the layout table. micro: samples of a micro-batch; options: of `ParallelConfig`."""

    data: int = 1
    micro: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parallel(self) -> ParallelConfig:
        """The options of the layout; small buckets, so that there are several."""
        return ParallelConfig(**{"ddp_bucket_size": 4000, **self.options})

    @property
    def layout(self) -> Layout:
        """The processes."""
        parallel = self.parallel
        return Layout(
            pipeline=parallel.pipeline_model_parallel_size, data=self.data, tensor=parallel.tensor_model_parallel_size
        )


def micro_batch(first: int, size: int) -> Batch:
    """Samples first..first+size-1: each a function of its number, with its own length and number of masks, even 0."""
    rows = []
    for number in range(first, first + size):
        generator = np.random.default_rng(number)
        length = int(generator.integers(6, SEQUENCE + 1))
        masks = 0 if number % 4 == 3 else int(generator.integers(1, 6))
        masked = np.sort(generator.choice(np.arange(1, length), size=masks, replace=False))
        tokens = np.where(np.arange(SEQUENCE) < length, generator.integers(4, VOCABULARY, SEQUENCE), 0)
        types = (np.arange(SEQUENCE) >= length // 2).astype(np.int64)
        rows.append((tokens, types, length, masked, generator.integers(4, VOCABULARY, len(masked)), number % 2))
    tokens, types, lengths, masked, labels, sop = zip(*rows, strict=True)
    positions = [row * SEQUENCE + m for row, m in enumerate(masked)]
    return Batch(
        tokens=np.stack(tokens).astype(np.int64),
        token_types=np.stack(types),
        lengths=np.array(lengths, dtype=np.int64),
        masked_positions=np.concatenate(positions).astype(np.int64),
        masked_labels=np.concatenate(labels).astype(np.int64),
        sop_labels=np.array(sop, dtype=np.int64),
        samples=np.arange(first, first + size, dtype=np.int64),
    )


def train(
    context: ParallelContext,
    row: Row,
    precision: PrecisionConfig = PrecisionConfig(),  # noqa: B008 (frozen)
    shapes: tuple[str, ...] = tuple(SHAPES),
    steps: int = STEPS,
) -> dict[str, dict[str, list[float]]]:
    """By shape: losses, hits and gradient norms of the steps, then of an evaluation of the last batch."""
    context = dataclasses.replace(
        context, sequence_parallel=row.parallel.sequence_parallel and context.layout.tensor > 1
    )
    return {name: _train(context, SHAPES[name], row, precision, steps) for name in shapes}


def _train(
    context: ParallelContext, config: ModelConfig, row: Row, precision: PrecisionConfig, steps: int
) -> dict[str, list[float]]:
    model = build(config, row.parallel, precision, seed=7, context=context)
    settings = OptimizerConfig(lr=1e-2, clip_grad=1.0)
    optimizer = new_optimizer(model.chunks, settings, precision, row.parallel, context)
    share = GLOBAL_BATCH // context.data.size
    figures: dict[str, list[float]] = {"mlm": [], "mlm_hits": [], "sop": [], "norm": [], "evaluation": []}
    for step in range(steps):
        first = step * GLOBAL_BATCH + context.data.rank * share
        batches = [micro_batch(first + offset, row.micro) for offset in range(0, share, row.micro)]
        done = train_step(model, optimizer, batches, 1e-2, seed=5)
        figures["mlm"].append(done.totals.mlm / done.totals.masked)
        figures["mlm_hits"].append(done.totals.mlm_hits)
        figures["sop"].append(done.totals.sop / done.totals.samples)
        figures["norm"].append(done.outcome.grad_norm)
    totals = reduced(evaluation_sums(model, batches), count(batches, context), context)
    figures["evaluation"] = [totals.mlm / totals.masked, totals.sop / totals.samples, totals.masked, totals.tokens]
    return figures
