"""Micro-batches of one shape, as a CUDA graph needs them, give the numbers of micro-batches as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.config import DataConfig, OptimizerConfig, PrecisionConfig, PretrainConfig, TrainingConfig
from megatron.mpu.context import ParallelContext
from megatron.ops import (
    add_norm,
    attention,
    bias_activation,
    cross_entropy,
    dropout,
    embedding,
    main_grad,
    softmax,
)
from megatron.training.graphs import Capture, MicroBatchGraph, new_graph
from megatron.training.model import build, new_optimizer
from megatron.training.step import train_step
from tests.layouts.tiny import GLOBAL_BATCH, SEQUENCE, SHAPES, Row, micro_batch
from tests.ranks import run_ranks

MICRO, STEPS, SEED = 2, 5, 5
Figures = list[tuple[float, ...]]


def figures(
    context: ParallelContext,
    name: str,
    precision: PrecisionConfig,
    options: dict[str, object],
    capture: Capture | None = None,
) -> Figures:
    """Losses, hits and norms of some steps of a tiny model; with `capture` through a graph."""
    parallel = Row(micro=MICRO, options=options).parallel
    run = build(SHAPES[name], parallel, precision, seed=7, context=context)
    optimizer = new_optimizer(run.chunks, OptimizerConfig(lr=1e-2), precision, parallel, context)
    graph = None
    if capture is not None:
        graph = MicroBatchGraph(run, samples=MICRO, sequence=SEQUENCE, masked=16, seed=SEED, capture=capture)
    share, found = GLOBAL_BATCH // context.data.size, []
    for step in range(STEPS):
        first = step * GLOBAL_BATCH + context.data.rank * share
        batches = [micro_batch(first + offset, MICRO) for offset in range(0, share, MICRO)]
        done = train_step(run, optimizer, batches, 1e-2, seed=SEED, graph=graph)
        totals = done.totals
        found.append((totals.mlm, totals.mlm_hits, totals.sop, totals.sop_hits, done.outcome.grad_norm))
    return found


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """A graph without CUDA: the same work again, on what lies in the same places."""
    return work


@pytest.mark.parametrize("precision", [PrecisionConfig(), PrecisionConfig(bf16=True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_one_process(name: str, precision: PrecisionConfig) -> None:
    tolerance = 2e-2 if precision.bf16 else 1e-5
    context = ParallelContext.single()
    expected = figures(context, name, precision, {})
    for step, row in zip(figures(context, name, precision, {}, recorded), expected, strict=True):
        assert step == pytest.approx(row, rel=tolerance, abs=1e-12)


@pytest.mark.parametrize("sharded", [False, True])
def test_data_parallel(sharded: bool) -> None:
    row = Row(data=2, micro=MICRO, options={"use_distributed_optimizer": sharded})
    name = "megatron-bert, dropout"
    expected = figures(ParallelContext.single(), name, PrecisionConfig(), {})
    for rank in run_ranks(row.layout, figures, name, PrecisionConfig(), row.options, recorded):
        for found, at_once in zip(rank, expected, strict=True):
            assert found == pytest.approx(at_once, rel=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_host_need_not_know_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is computed on tensors that have shapes and no values, by the operations of a GPU."""
    for module in (add_norm, attention, bias_activation, cross_entropy, dropout, embedding, main_grad, softmax):
        monkeypatch.setattr(module, "is_compiled", lambda x, columns=0: True, raising=False)
        monkeypatch.setattr(module, "is_compiled_for_cpu", lambda x: False, raising=False)
    precision, parallel, context = PrecisionConfig(bf16=True), Row(micro=MICRO).parallel, ParallelContext.single()
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = build(SHAPES[name], parallel, precision, seed=7, context=context)
        new_optimizer(run.chunks, OptimizerConfig(lr=1e-2), precision, parallel, context)
        graph = MicroBatchGraph(run, samples=MICRO, sequence=SEQUENCE, masked=16, seed=SEED)
        with Names() as called:
            graph.work()
    ours = {name.removeprefix("megatron::") for name in called.names if name.startswith("megatron::")}
    expected = {"add_norm", "bias_activation", "cross_entropy"}
    expected |= {"softmax"} if SHAPES[name].attention_dropout > 0 else set()
    assert expected <= ours and not ours & {"attention", "embedding"}, ours


class Names(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, types: object, arguments: Any = (), keywords: dict[str, Any] | None = None
    ) -> object:
        self.names.add(operator._schema.name)
        return operator(*arguments, **(keywords or {}))


def test_the_graph_of_a_run_has_room_for_its_most_masked_tokens() -> None:
    """Five of twelve tokens, when the share to mask has grown to its end."""
    name, parallel, context = "bert", Row(micro=MICRO).parallel, ParallelContext.single()
    config = PretrainConfig(
        model=SHAPES[name],
        data=DataConfig(seq_length=SEQUENCE, mask_prob=0.1, mask_prob_end=0.4, mask_prob_samples=100),
        training=TrainingConfig(micro_batch_size=MICRO, seed=SEED),
    )
    run = build(config.model, parallel, PrecisionConfig(), seed=7, context=context)
    new_optimizer(run.chunks, OptimizerConfig(lr=1e-2), PrecisionConfig(), parallel, context)
    masked = np.concatenate([np.arange(1, 6), SEQUENCE + np.arange(1, 6)])
    batch = dataclasses.replace(micro_batch(0, MICRO), masked_positions=masked, masked_labels=masked)
    graph = new_graph(run, config)
    graph.add(batch, mlm=1.0, sop=1.0)
    assert graph.sums[0] > 0
