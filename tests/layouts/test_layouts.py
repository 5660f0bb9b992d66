"""The layout table: a run's numbers do not depend on how its work is divided.

A tiny model is trained for five steps through the real optimizer in every layout and compared with one process.
"""

import numpy as np
import pytest
import torch

from megatron.config import ModelConfig, OptimizerConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.sharding import initialize
from megatron.optimizer.adamw import Optimizer
from megatron.training.step import count, forward, reduced, sums_of, train_step
from tests.ranks import run_ranks

STEPS, GLOBAL_BATCH, SEQUENCE, VOCABULARY = 5, 8, 12, 51

SHAPES = {
    "bert": ModelConfig(
        architecture="bert", num_layers=2, hidden_size=16, num_attention_heads=4, ffn_hidden_size=32,
        max_position_embeddings=16, vocab_size=VOCABULARY, task_type_vocab_size=2,
    ),
    "megatron-bert": ModelConfig(
        architecture="megatron-bert", num_layers=2, hidden_size=16, num_attention_heads=4, ffn_hidden_size=32,
        max_position_embeddings=16, vocab_size=VOCABULARY, hidden_dropout=0.2, attention_dropout=0.3,
    ),
}  # fmt: skip

# Name of the row: layout, micro-batch size.
LAYOUTS = {
    "one process, micro-batches": (Layout(), 2),
    "one process, single samples": (Layout(), 1),
    "data 2": (Layout(data=2), 4),
    "data 2, accumulated": (Layout(data=2), 2),
    "data 4": (Layout(data=4), 2),
    "tensor 2": (Layout(tensor=2), 8),
    "tensor 4": (Layout(tensor=4), 4),
    "data 2, tensor 2": (Layout(data=2, tensor=2), 2),
}


def micro_batch(first: int, size: int) -> Batch:
    """Samples first..first+size-1: each a function of its number, with its own length and number of masks."""
    rows = []
    for number in range(first, first + size):
        generator = np.random.default_rng(number)
        length = int(generator.integers(6, SEQUENCE + 1))
        masked = np.sort(generator.choice(np.arange(1, length), size=int(generator.integers(1, 5)), replace=False))
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
    context: ParallelContext, config: ModelConfig, size: int, precision: PrecisionConfig
) -> dict[str, list[float]]:
    """Losses, hits and norms of the steps, then of an evaluation."""
    model = BertForPreTraining(config, context)
    initialize(model, seed=7)
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-2, clip_grad=1.0), precision, context)
    share = GLOBAL_BATCH // context.data.size
    figures: dict[str, list[float]] = {"mlm": [], "mlm_hits": [], "sop": [], "norm": [], "evaluation": []}
    for step in range(STEPS):
        first = step * GLOBAL_BATCH + context.data.rank * share
        batches = [micro_batch(first + offset, size) for offset in range(0, share, size)]
        totals, outcome = train_step(model, optimizer, batches, 1e-2, config=config, seed=5, context=context)
        figures["mlm"].append(totals.mlm / totals.masked)
        figures["mlm_hits"].append(totals.mlm_hits)
        figures["sop"].append(totals.sop / totals.samples)
        figures["norm"].append(outcome.grad_norm)
    with torch.no_grad():
        sums = sum(sums_of(forward(model, batch, context, None)) for batch in batches)
    totals = reduced(sums, count(batches, context), context)
    figures["evaluation"] = [totals.mlm / totals.masked, totals.sop / totals.samples, totals.masked, totals.tokens]
    return figures


@pytest.fixture(scope="module")
def one_process() -> dict[str, dict[str, list[float]]]:
    return {
        name: train(ParallelContext.single(), config, GLOBAL_BATCH, PrecisionConfig())
        for name, config in SHAPES.items()
    }


@pytest.mark.parametrize("row", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_do_not_depend_on_the_layout(
    shape: str, row: str, one_process: dict[str, dict[str, list[float]]]
) -> None:
    layout, size = LAYOUTS[row]
    for figures in run_ranks(layout, train, SHAPES[shape], size, PrecisionConfig()):
        for name, expected in one_process[shape].items():
            assert figures[name] == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(data=2, tensor=2)])
def test_bf16_does_not_depend_on_the_layout_beyond_its_rounding(layout: Layout) -> None:
    alone = train(ParallelContext.single(), SHAPES["bert"], GLOBAL_BATCH, PrecisionConfig(bf16=True))
    for figures in run_ranks(layout, train, SHAPES["bert"], 2, PrecisionConfig(bf16=True)):
        assert figures["mlm"] == pytest.approx(alone["mlm"], rel=2e-2)


def test_dropout_is_on_in_the_table(one_process: dict[str, dict[str, list[float]]]) -> None:
    """The rows compare dropout masks too: without dropout the numbers are others."""
    import dataclasses

    config = dataclasses.replace(SHAPES["megatron-bert"], hidden_dropout=0.0, attention_dropout=0.0)
    without = train(ParallelContext.single(), config, GLOBAL_BATCH, PrecisionConfig())
    assert without["mlm"][0] != pytest.approx(one_process["megatron-bert"]["mlm"][0], rel=1e-4)
