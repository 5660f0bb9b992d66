"""A checkpoint of any layout is loaded in any other: the same bits, and the run goes on as if it had not stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.shards import read_index, read_pieces
from megatron.config import CheckpointConfig, OptimizerConfig, PrecisionConfig, PretrainConfig
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from megatron.training.model import Pretraining, build, new_optimizer
from megatron.training.saving import Saver
from megatron.training.state import Origin, Progress, load
from megatron.training.step import train_step
from tests.layouts.test_layouts import LAYOUTS, PP, SP, TP, VIRTUAL, ZERO
from tests.layouts.tiny import GLOBAL_BATCH, SHAPES, Row, micro_batch
from tests.ranks import run_ranks

ROWS = {
    "one process": Row(micro=8),
    "tensor 2": LAYOUTS["tensor 2"],
    "pipeline 2": LAYOUTS["pipeline 2"],
    "interleaved 2 x 2": Row(micro=2, options={PP: 2, VIRTUAL: 2}),
    "tensor 2, data 2": LAYOUTS["tensor 2, data 2"],
    "ZeRO data 2": LAYOUTS["ZeRO data 2"],
    "sequence 2, pipeline 2": Row(micro=2, options={TP: 2, SP: True, PP: 2}),
    "ZeRO data 2, tensor 2": LAYOUTS["ZeRO data 2, tensor 2"],
    "ZeRO data 2, tensor 2, pipeline 2": Row(data=2, micro=2, options={ZERO: True, TP: 2, PP: 2}),
}
SHAPE = SHAPES["megatron-bert, dropout"]
FIRST, MORE = 2, 3


def begin(context: ParallelContext, row: Row) -> tuple[ParallelContext, Pretraining, Optimizer]:
    context = dataclasses.replace(context, sequence_parallel=row.parallel.sequence_parallel)
    model = build(SHAPE, row.parallel, PrecisionConfig(), seed=7, context=context)
    settings = OptimizerConfig(lr=1e-2, clip_grad=1.0)
    return context, model, new_optimizer(model.chunks, settings, PrecisionConfig(), row.parallel, context)


def steps(
    context: ParallelContext, model: Pretraining, optimizer: Optimizer, row: Row, first: int, stop: int
) -> list[float]:
    """Losses and gradient norms of some steps."""
    figures: list[float] = []
    share = GLOBAL_BATCH // context.data.size
    for step in range(first, stop):
        start = step * GLOBAL_BATCH + context.data.rank * share
        done = train_step(
            model, optimizer, [micro_batch(start + at, row.micro) for at in range(0, share, row.micro)], 1e-2, seed=5
        )
        figures += [done.totals.mlm / done.totals.masked, done.totals.sop, done.outcome.grad_norm]
    return figures


def save(context: ParallelContext, optimizer: Optimizer, folder: Path) -> None:
    config = PretrainConfig(model=SHAPE, checkpoint=CheckpointConfig(save=str(folder)))
    saver = Saver(config, {}, {}, context)
    saver.save(Progress(step=FIRST, consumed_samples=FIRST * GLOBAL_BATCH), optimizer, in_background=False)
    saver.close()


def assert_same_bits(optimizer: Optimizer, folder: Path) -> None:
    """What this rank holds is what the checkpoint says."""
    path = folder / f"iter_{FIRST:07d}"
    for kind, pieces in (("model", optimizer.weights()), ("optimizer", optimizer.moments())):
        index = read_index(path, kind)
        expected = [dataclasses.replace(piece, tensor=torch.empty_like(piece.tensor)) for piece in pieces]
        read_pieces(path, index, expected)
        for own, read in zip(pieces, expected, strict=True):
            assert index[own.name].shape == own.global_shape and torch.equal(own.tensor, read.tensor), own.name


def run_whole(context: ParallelContext, row: Row, folder: Path) -> list[float]:
    """Train, save, train on; the figures of the steps after the save."""
    context, model, optimizer = begin(context, row)
    steps(context, model, optimizer, row, 0, FIRST)
    save(context, optimizer, folder)
    assert_same_bits(optimizer, folder)
    return steps(context, model, optimizer, row, FIRST, FIRST + MORE)


def load_all(context: ParallelContext, row: Row, folders: dict[str, Path]) -> dict[str, list[float]]:
    """From each checkpoint: load and train on; the figures by its name."""
    found = {}
    for name, folder in folders.items():
        here, model, optimizer = begin(context, row)
        origin = Origin(path=folder / f"iter_{FIRST:07d}", resumed=True, with_optimizer=True)
        progress, lacking = load(origin, optimizer, here)
        assert (progress.step, progress.consumed_samples, lacking) == (FIRST, FIRST * GLOBAL_BATCH, ())
        assert_same_bits(optimizer, folder)
        found[name] = steps(here, model, optimizer, row, FIRST, FIRST + MORE)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[float]]:
    """A checkpoint of each layout, and the figures of one process after it."""
    folders = {name: tmp_path_factory.mktemp("saved") for name in ROWS}
    figures = {name: run_ranks(ROWS[name].layout, run_whole, ROWS[name], folders[name])[0] for name in ROWS}
    return folders, figures["one process"]


@pytest.mark.parametrize("name", ROWS)
def test_every_layout_loads_the_checkpoints_of_all(name: str, saved: tuple[dict[str, Path], list[float]]) -> None:
    folders, uninterrupted = saved
    for rank in run_ranks(ROWS[name].layout, load_all, ROWS[name], folders):
        for other, figures in rank.items():
            assert figures == pytest.approx(uninterrupted, rel=1e-5), other
