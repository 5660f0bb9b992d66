"""The layout table: a run's numbers do not depend on how its work is divided.

A tiny model is trained for five steps through the real optimizer in every layout and compared with one process: two
architectures, with and without dropout and binary head, odd sizes, and micro-batches with very different numbers of
masked tokens, one of them none.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron.config import OptimizerConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.training.model import build, new_optimizer
from megatron.training.step import train_step
from tests.layouts.tiny import GLOBAL_BATCH, SHAPES, Row, micro_batch, train
from tests.ranks import run_ranks

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
VIRTUAL, SCHEDULE, SP = "num_layers_per_virtual_pipeline_stage", "pipeline_schedule", "sequence_parallel"
ZERO, AGAIN = "use_distributed_optimizer", "recompute_granularity"

LAYOUTS = {
    "2 micro-batches": Row(micro=4),
    "4 micro-batches": Row(micro=2),
    "8 micro-batches": Row(micro=1),
    "data 2": Row(data=2, micro=4),
    "data 2, 4 micro-batches": Row(data=2, micro=1),
    "data 4": Row(data=4, micro=2),
    "tensor 2": Row(micro=8, options={TP: 2}),
    "tensor 4": Row(micro=4, options={TP: 4}),
    "pipeline 2": Row(micro=2, options={PP: 2}),
    "pipeline 4": Row(micro=1, options={PP: 4}),
    "pipeline 4, fewer micro-batches than stages": Row(micro=4, options={PP: 4}),
    "pipeline 3, uneven": Row(micro=1, options={PP: 3}),
    "pipeline 2, split 3,5": Row(micro=2, options={PP: 2, "pipeline_split": "3,5"}),
    "interleaved 2 x 2": Row(micro=2, options={PP: 2, VIRTUAL: 2}),
    "interleaved 4 x 2": Row(micro=2, options={PP: 4, VIRTUAL: 1}),
    "interleaved 2 x 4, odd number of micro-batches": Row(micro=8, options={PP: 2, VIRTUAL: 1}),
    "zero-bubble 2": Row(micro=1, options={PP: 2, SCHEDULE: "zero-bubble"}),
    "zero-bubble 4": Row(micro=1, options={PP: 4, SCHEDULE: "zero-bubble"}),
    "tensor 2, pipeline 2": Row(micro=2, options={TP: 2, PP: 2}),
    "tensor 2, data 2": Row(data=2, micro=2, options={TP: 2}),
    "pipeline 2, data 2": Row(data=2, micro=2, options={PP: 2}),
    "tensor 2, pipeline 2, data 2": Row(data=2, micro=2, options={TP: 2, PP: 2}),
    "sequence 2": Row(micro=4, options={TP: 2, SP: True}),
    "sequence 4": Row(micro=4, options={TP: 4, SP: True}),
    "sequence 2, pipeline 2": Row(micro=2, options={TP: 2, SP: True, PP: 2}),
    "ZeRO data 2": Row(data=2, micro=2, options={ZERO: True}),
    "ZeRO data 4": Row(data=4, micro=1, options={ZERO: True}),
    "ZeRO data 2, tensor 2": Row(data=2, micro=2, options={ZERO: True, TP: 2}),
    "ZeRO data 2, sequence 2, pipeline 2, zero-bubble": Row(
        data=2, micro=1, options={ZERO: True, TP: 2, SP: True, PP: 2, SCHEDULE: "zero-bubble"}
    ),
    "ZeRO data 2, pipeline 2 x 2": Row(data=2, micro=1, options={ZERO: True, PP: 2, VIRTUAL: 2}),
    "recompute selective": Row(micro=4, options={AGAIN: "selective"}),
    "recompute full": Row(micro=4, options={AGAIN: "full"}),
    "recompute full, stretches of 3": Row(micro=4, options={AGAIN: "full", "recompute_num_layers": 3}),
    "recompute full, block of 5": Row(
        micro=4, options={AGAIN: "full", "recompute_method": "block", "recompute_num_layers": 5}
    ),
    "recompute full, sequence 2, zero-bubble 2": Row(
        micro=2, options={AGAIN: "full", TP: 2, SP: True, PP: 2, SCHEDULE: "zero-bubble"}
    ),
}

# Row, and one whose sums have the same order, so that nothing is rounded otherwise.
SAME_BITS = {
    "interleaved 2 x 2, one micro-batch": (Row(micro=8, options={PP: 2, VIRTUAL: 2}), Row(micro=8, options={PP: 2})),
    "pipeline 4": (LAYOUTS["pipeline 4"], Row(micro=1, options={PP: 2})),
    "pipeline 3, uneven": (LAYOUTS["pipeline 3, uneven"], LAYOUTS["pipeline 4"]),
    "interleaved 4 x 2": (LAYOUTS["interleaved 4 x 2"], LAYOUTS["pipeline 2"]),
    "zero-bubble 4": (LAYOUTS["zero-bubble 4"], LAYOUTS["zero-bubble 2"]),
    "ZeRO data 2": (LAYOUTS["ZeRO data 2"], Row(data=2, micro=2)),
    **{name: (LAYOUTS[name], LAYOUTS["2 micro-batches"]) for name in LAYOUTS if name.startswith("recompute")
       and "zero-bubble" not in name},
    "recompute full, sequence 2, zero-bubble 2": (
        LAYOUTS["recompute full, sequence 2, zero-bubble 2"],
        Row(micro=2, options={TP: 2, SP: True, PP: 2, SCHEDULE: "zero-bubble"}),
    ),
}  # fmt: skip

Figures = dict[str, dict[str, list[float]]]


@pytest.fixture(scope="module")
def one_process() -> Figures:
    return train(ParallelContext.single(), Row(micro=8))


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_do_not_depend_on_the_layout(name: str, one_process: Figures) -> None:
    for rank in run_ranks(LAYOUTS[name].layout, train, LAYOUTS[name]):
        for shape, expected in one_process.items():
            for figure, values in expected.items():
                assert rank[shape][figure] == pytest.approx(values, rel=1e-5), (shape, figure)


@pytest.mark.parametrize("name", ["ZeRO data 4", "ZeRO data 2, sequence 2, pipeline 2, zero-bubble"])
def test_numbers_over_the_network_are_those_through_shared_memory(name: str, one_process: Figures) -> None:
    row, shape = LAYOUTS[name], "megatron-bert, dropout"
    for rank in run_ranks(row.layout, train, row, PrecisionConfig(), (shape,), shared_memory=False):
        for figure, values in one_process[shape].items():
            assert rank[shape][figure] == pytest.approx(values, rel=1e-5), figure


def train_through_host(context: ParallelContext, row: Row, shape: str) -> Figures:
    """As with a GPU that processes share: gloo gets copies of what is communicated."""
    names = ("tensor", "data", "pipeline", "embedding")
    groups = {name: replace(getattr(context, name), through_host=True) for name in names}
    return train(replace(context, **groups), row, PrecisionConfig(), (shape,))


def test_numbers_through_copies_on_the_host(one_process: Figures) -> None:
    row, shape = LAYOUTS["ZeRO data 2, sequence 2, pipeline 2, zero-bubble"], "megatron-bert, dropout"
    for rank in run_ranks(row.layout, train_through_host, row, shape, shared_memory=False):
        for figure, values in one_process[shape].items():
            assert rank[shape][figure] == pytest.approx(values, rel=1e-5), figure


@pytest.mark.parametrize("name", SAME_BITS)
def test_same_bits_where_sums_keep_their_order(name: str) -> None:
    row, other = SAME_BITS[name]
    shapes = ("bert", "megatron-bert, no binary head")
    expected = run_ranks(other.layout, train, other, PrecisionConfig(), shapes)[0]
    for rank in run_ranks(row.layout, train, row, PrecisionConfig(), shapes):
        for shape in shapes:
            for figure in ("mlm", "sop", "evaluation"):
                assert rank[shape][figure] == expected[shape][figure], (shape, figure)


@pytest.mark.parametrize("name", ["data 2", "tensor 2, data 2", "ZeRO data 2, pipeline 2 x 2"])
def test_bf16_does_not_depend_on_the_layout_beyond_its_rounding(name: str) -> None:
    precision, shape = PrecisionConfig(bf16=True), ("bert",)
    alone = train(ParallelContext.single(), Row(micro=8), precision, shape)["bert"]
    for rank in run_ranks(LAYOUTS[name].layout, train, LAYOUTS[name], precision, shape):
        assert rank["bert"]["mlm"] == pytest.approx(alone["mlm"], rel=2e-2)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_bf16_follows_fp32_for_50_steps(device: str) -> None:
    context, row, shapes = ParallelContext.single(device), Row(micro=8), ("bert", "megatron-bert, dropout")
    expected = train(context, row, PrecisionConfig(), shapes, 50)
    for shape, found in train(context, row, PrecisionConfig(bf16=True), shapes, 50).items():
        for figure in ("mlm", "sop"):
            assert found[figure] == pytest.approx(expected[shape][figure], rel=2e-2), (shape, figure)


def test_dropout_is_on_in_the_table(one_process: Figures) -> None:
    """The rows compare dropout masks too: without dropout the numbers are others."""
    with_dropout, without = (one_process[name]["mlm"][0] for name in ("bert", "bert, no dropout, no binary head"))
    assert SHAPES["bert"].hidden_dropout > 0
    assert with_dropout != pytest.approx(without, rel=1e-4)


def loss_scales(context: ParallelContext, row: Row) -> list[tuple[bool, float]]:
    """Whether each step was skipped, and the loss scale after it; fp16 from a scale that is too high at first."""
    precision = PrecisionConfig(fp16=True, initial_loss_scale=2.0**26, hysteresis=1)
    model = build(SHAPES["bert"], row.parallel, precision, seed=7, context=context)
    optimizer = new_optimizer(model.chunks, OptimizerConfig(lr=1e-3), precision, row.parallel, context)
    share = GLOBAL_BATCH // context.data.size
    batches = [micro_batch(context.data.rank * share + offset, row.micro) for offset in range(0, share, row.micro)]
    return [
        (train_step(model, optimizer, batches, 1e-3, seed=5).outcome.skipped, optimizer.loss_scale.scale)
        for _ in range(14)
    ]


@pytest.mark.parametrize("name", ["tensor 2, pipeline 2", "ZeRO data 2, sequence 2, pipeline 2, zero-bubble"])
def test_fp16_skips_and_scales_alike_on_all_ranks(name: str) -> None:
    """A gradient overflows where its loss does: on some ranks only. All of them skip the step."""
    ranks = run_ranks(LAYOUTS[name].layout, loss_scales, LAYOUTS[name])
    assert all(rank == ranks[0] for rank in ranks)
    skipped = [skip for skip, _ in ranks[0]]
    assert skipped[0] and not skipped[-1]
    assert ranks[0][-1][1] == 2.0 ** (26 - sum(skipped))
