"""The planner's memory against what ranks really hold: states to the byte, activations closely."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron.mpu.context import ParallelContext
from megatron.planning.activations import kept_by_part
from megatron.planning.case import Case
from megatron.planning.memory import largest_memory, stage_memory, unlike_stages
from megatron.planning.states import state_bytes
from tests.planning.measured import SHAPE, case, held_bytes, kept_bytes
from tests.ranks import run_ranks

TP, PP, SP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"
ZERO, VIRTUAL, AGAIN = "use_distributed_optimizer", "num_layers_per_virtual_pipeline_stage", "recompute_granularity"

STATES = {
    "one process": case({}),
    "one process, bf16": case({}, dtype="bf16"),
    "data 2": case({}, data=2, dtype="bf16"),
    "ZeRO data 3, odd": case({ZERO: True}, data=3),
    "ZeRO data 2, bf16": case({ZERO: True}, data=2, dtype="bf16"),
    "tensor 2, vocabulary that 2 does not divide": case({TP: 2, SP: True}),
    "pipeline 3, uneven": case({PP: 3}),
    "interleaved 2 x 2, bf16": case({PP: 2, VIRTUAL: 1}, dtype="bf16"),
    "ZeRO data 2, tensor 2": case({ZERO: True, TP: 2}, data=2),
    "ZeRO data 2, pipeline 2, no binary head": case(
        {ZERO: True, PP: 2},
        data=2,
        dtype="bf16",
        model=dataclasses.replace(SHAPE, architecture="bert", bert_no_binary_head=True, task_type_vocab_size=3),
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_states_are_exact(name: str) -> None:
    what = STATES[name]
    for stage, held in run_ranks(what.layout, held_bytes, what):
        assert vars(state_bytes(what, stage)) == held


NO_DROPOUT = dataclasses.replace(SHAPE, hidden_dropout=0.0, attention_dropout=0.0)
POST = dataclasses.replace(SHAPE, architecture="bert")

ACTIVATIONS = {
    "one process": case({}),
    "one process, no dropout": case({}, model=NO_DROPOUT),
    "one process, bf16": case({}, dtype="bf16"),
    "bert": case({}, model=POST),
    "relu, no binary head": case({}, model=dataclasses.replace(SHAPE, activation="relu", bert_no_binary_head=True)),
    "hidden dropout alone": case({}, model=dataclasses.replace(SHAPE, attention_dropout=0.0)),
    "selective": case({AGAIN: "selective"}),
    "full": case({AGAIN: "full"}),
    "full, stretches of 3": case({AGAIN: "full", "recompute_num_layers": 3}),
    "full, block of 1": case({AGAIN: "full", "recompute_method": "block", "recompute_num_layers": 1}),
    "tensor 2": case({TP: 2}),
    "tensor 2 of GPUs": case({TP: 2}, on_gpu=True),
    "tensor 2 of GPUs, bf16": case({TP: 2}, on_gpu=True, dtype="bf16"),
    "tensor 2 of GPUs, selective": case({TP: 2, AGAIN: "selective"}, on_gpu=True),
    "sequence 2": case({TP: 2, SP: True}),
    "sequence 2, no dropout": case({TP: 2, SP: True}, model=NO_DROPOUT),
    "sequence 2, bert, selective": case({TP: 2, SP: True, AGAIN: "selective"}, model=POST),
    "pipeline 2": case({PP: 2}),
    "interleaved 2 x 2, bert": case({PP: 2, VIRTUAL: 1}, model=POST),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_what_autograd_keeps(name: str) -> None:
    """To 0.1 %: the formulas count every tensor that grows with the batch.

    What recomputation keeps in closures (keys) is counted, but is not seen here.
    """
    what = ACTIVATIONS[name]
    for stage, kept in run_ranks(what.layout, kept_bytes, what):
        close = 0.03 if what.parallel.recompute_granularity else 0.001
        assert [kept_by_part(what, part) for part in what.parts(stage)] == pytest.approx(kept, rel=close)


def held_in_flight(what: Case) -> list[float]:
    """Activations of each stage relative to one micro-batch through it."""
    return [
        stage_memory(what, stage).activations / sum(kept_by_part(what, part) for part in what.parts(stage))
        for stage in range(what.layout.pipeline)
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({PP: 4}, [4, 3, 2, 1]),
        ({PP: 2}, [2, 1]),
        ({PP: 2, VIRTUAL: 8}, [2.5, 1.5]),  # 2 x 2 + 1 chunks; both chunks of a stage are about equal
    ],
)
def test_activations_in_flight_follow_the_plan(options: dict[str, Any], expected: list[float]) -> None:
    what = case(options, micro_batches=16, masked=1, model=dataclasses.replace(SHAPE, num_layers=32, hidden_size=192))
    assert held_in_flight(what) == pytest.approx(expected, rel=0.12)


def test_zero_bubble_keeps_what_waits_for_weight_gradients() -> None:
    zero_bubble, plain = (case({PP: 4, "pipeline_schedule": name}, micro_batches=8) for name in ("zero-bubble", "1f1b"))
    last = [stage_memory(what, 3).activations for what in (zero_bubble, plain)]
    assert last[0] > 2 * last[1]
    assert stage_memory(zero_bubble, 0).activations == stage_memory(plain, 0).activations


def test_the_largest_stage_is_found_among_a_few() -> None:
    what = case({PP: 4, "pipeline_split": "1,1,3,3"}, model=dataclasses.replace(SHAPE, num_layers=8))
    assert unlike_stages(what) == [0, 2, 3]
    every = [stage_memory(what, stage).total for stage in range(4)]
    assert largest_memory(what).total == max(every)


def test_a_long_step_is_like_a_shorter_one() -> None:
    """Steps of many micro-batches are not simulated to the end: bubble and memory are those of the whole."""
    for options in ({PP: 4}, {PP: 4, VIRTUAL: 1}, {PP: 4, "pipeline_schedule": "zero-bubble"}):
        for micro_batches in (64, 67):
            what = case(options, micro_batches=micro_batches, model=dataclasses.replace(SHAPE, num_layers=8))
            assert what.steady < micro_batches
            whole = dataclasses.replace(what, micro_batches=micro_batches)
            timeline = _whole_timeline(whole)
            assert what.bubble == pytest.approx(timeline.bubble)
            assert timeline.peak_held == what.timeline.peak_held


def _whole_timeline(what: Case) -> Any:
    from megatron.mpu.pipeline.plan import make_plan
    from megatron.mpu.pipeline.timeline import simulate

    sizes = {"stages": what.layout.pipeline, "chunks": what.parallel.chunks(what.model)}
    schedule = what.parallel.schedule(what.model)
    return simulate(make_plan(schedule, micro_batches=what.micro_batches, **sizes), **sizes)


def test_a_single_process_needs_no_groups() -> None:
    stage, held = held_bytes(ParallelContext.single(), STATES["one process"])
    assert stage == 0 and sum(held.values()) == state_bytes(STATES["one process"], 0).total
