"""Replicas that differ, losses that jump and ranks that are slow are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron.config import OptimizerConfig, PrecisionConfig
from megatron.errors import JobError
from megatron.mpu.context import ParallelContext
from megatron.training import loop
from megatron.training.health import SpikeWatch, Spread, check_replicas, spread
from megatron.training.model import build, new_optimizer
from tests.layouts.test_layouts import LAYOUTS
from tests.layouts.tiny import SHAPES, Row
from tests.ranks import run_ranks
from tests.training.corpus import records
from tests.training.run import train


def message_after_damage(context: ParallelContext, row: Row, rank: int, name: str) -> str:
    """What `check_replicas` says when a bit of a tensor is flipped on one rank."""
    model = build(SHAPES["bert"], row.parallel, PrecisionConfig(), seed=7, context=context)
    new_optimizer(model.chunks, OptimizerConfig(lr=1e-3), PrecisionConfig(), row.parallel, context)
    check_replicas(model.chunks, context)
    if context.rank == rank:
        tensor = next(p for chunk in model.chunks for n, p in chunk.named_parameters() if n == name)
        tensor.data.view(-1)[3:4].view(torch.int32).bitwise_xor_(1)
    try:
        check_replicas(model.chunks, context)
    except JobError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("layout", "rank", "name", "expected"),
    [
        ("data 4", 2, "encoder.layers.3.mlp.dense_h_to_4h.weight", "in the data group (ranks 0-3)"),
        ("tensor 4", 3, "encoder.layers.0.mlp_layernorm.bias", "in the tensor group (ranks 0-3)"),
        ("tensor 2, pipeline 2", 3, "embeddings.word_embeddings.weight", "in the embedding group (ranks 1, 3)"),
        ("ZeRO data 2, tensor 2", 2, "encoder.layers.1.mlp.dense_4h_to_h.weight", "in the data group (ranks 0, 2)"),
    ],
)
def test_a_flipped_bit_is_named_on_all_ranks(layout: str, rank: int, name: str, expected: str) -> None:
    messages = run_ranks(LAYOUTS[layout].layout, message_after_damage, LAYOUTS[layout], rank, name)
    assert all(message == messages[0] for message in messages)
    line = next(line for line in messages[0].splitlines() if expected in line)
    assert name in line
    assert f"rank {rank}:" in line or "embedding" in line or "0, 2" in line  # of two, either may be the right one


def test_healthy_replicas_are_compared_as_the_run_goes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(loop, "check_replicas", lambda chunks, context: calls.append(len(chunks)))
    train(corpus, train_iters=6, check_replicas_interval=2)
    assert calls == [1, 1, 1]


def test_a_spike_is_above_the_running_mean() -> None:
    watch = SpikeWatch(threshold=1.5)
    assert not any(watch.is_spike(loss) for loss in [9.0, 30.0, *[8.0] * 20])  # not in the first steps
    assert watch.is_spike(14.0) and not watch.is_spike(9.0)
    mean = watch.mean
    assert watch.is_spike(1000.0) and watch.mean == mean
    assert not SpikeWatch(threshold=None).is_spike(1e9)


def test_a_spike_names_its_samples(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeWatch, "is_spike", lambda watch, loss: bool(records(corpus)[4:]))
    train(corpus, train_iters=6, spike_threshold=1.5)
    said = capsys.readouterr().out
    expected = r"loss spike at step 6: .*samples 40 to 47 \(documents \d+, .* of .*corpus_text_sentence; tools"
    assert re.search(expected, said)


def spread_of(context: ParallelContext, seconds: list[float]) -> tuple[Spread | None, str | None]:
    found = spread(seconds[context.rank], context)
    assert found is not None
    return found, found.warning(context)


def test_a_slow_rank_is_named() -> None:
    for found, warning in run_ranks(LAYOUTS["data 4"].layout, spread_of, [0.1, 0.11, 0.25, 0.1]):
        assert found == Spread(median=0.1, most=0.25, slowest_rank=2)
        assert warning == "rank 2 is slow: 250 ms of work a step, the median 100 ms"
    assert run_ranks(LAYOUTS["data 2"].layout, spread_of, [0.1, 0.11])[0][1] is None
    assert spread(1.0, ParallelContext.single()) is None
