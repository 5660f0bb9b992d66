"""Plans: complete, in an order that comes to its end, and refused where they are not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.mpu.pipeline.plan import Action, Kind, Plan, Schedule, check_plan, make_plan

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def sizes(schedule: Schedule, stages: int) -> Iterator[dict[str, int]]:
    """Every number of chunks and micro-batches that the tests look at."""
    for chunks in range(1, 5) if schedule in ("interleaved", "forward-only") else (1,):
        for micro_batches in range(25):
            yield {"stages": stages, "chunks": chunks, "micro_batches": micro_batches}


@pytest.mark.parametrize("stages", range(1, 9))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_action_once_and_no_deadlock(schedule: Schedule, stages: int) -> None:
    kinds = {"forward-only": {Kind.FORWARD}, "zero-bubble": set(Kind) - {Kind.BACKWARD}}.get(
        schedule, {Kind.FORWARD, Kind.BACKWARD}
    )
    for size in sizes(schedule, stages):
        plan = make_plan(schedule, **size)
        check_plan(plan, **size)
        count = size["micro_batches"] * size["chunks"]
        assert [len(actions) for actions in plan] == [count * len(kinds)] * stages
        assert {action.kind for actions in plan for action in actions} == (kinds if count else set())


@pytest.mark.parametrize("stages", range(1, 9))
def test_interleaved_with_one_chunk_is_1f1b(stages: int) -> None:
    for micro_batches in range(12):
        size = {"stages": stages, "chunks": 1, "micro_batches": micro_batches}
        assert make_plan("interleaved", **size) == make_plan("1f1b", **size)


def letters(actions: tuple[Action, ...]) -> str:
    letter = {Kind.FORWARD: "F", Kind.BACKWARD: "B", Kind.BACKWARD_INPUT: "I", Kind.BACKWARD_WEIGHT: "W"}
    return " ".join(f"{letter[a.kind]}{a.micro_batch}{'abcd'[a.chunk]}" for a in actions)


def test_plans_of_the_papers() -> None:
    """Figure 4 of arXiv 2104.04473 (device 1 of the interleaved schedule) and figure 2 of arXiv 2401.10241 (ZB-H1)."""
    interleaved = make_plan("interleaved", stages=4, chunks=2, micro_batches=8)
    assert letters(interleaved[0]).startswith("F0a F1a F2a F3a F0b F1b F2b F3b F4a F5a F6a B0b F7a B1b F4b B2b F5b B3b")
    assert letters(interleaved[3]).startswith("F0a F1a F2a F3a F0b B0b F1b B1b F2b B2b F3b B3b F4a B0a F5a")
    first, _, _, last = make_plan("zero-bubble", stages=4, chunks=1, micro_batches=5)
    assert letters(first) == "F0a F1a F2a F3a I0a W0a F4a I1a W1a I2a W2a I3a W3a I4a W4a"
    assert letters(last) == "F0a I0a F1a I1a F2a I2a F3a I3a W0a F4a I4a W1a W2a W3a W4a"


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_chunks_need_a_schedule_that_has_them(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="one chunk"):
        make_plan(schedule, stages=2, chunks=2, micro_batches=4)


@pytest.mark.parametrize("size", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_impossible_sizes_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no plan"):
        make_plan("interleaved", stages=size[0], chunks=size[1], micro_batches=size[2])


SIZE = {"stages": 3, "chunks": 2, "micro_batches": 4}
plans = st.sampled_from([make_plan("interleaved", **SIZE), make_plan("forward-only", **SIZE)])


def changed(plan: Plan, stage: int, actions: list[Action]) -> Plan:
    return tuple(tuple(actions) if s == stage else old for s, old in enumerate(plan))


@given(plan=plans, stage=st.integers(0, 2), data=st.data())
def test_a_dropped_action_is_refused(plan: Plan, stage: int, data: st.DataObject) -> None:
    actions = list(plan[stage])
    dropped = actions.pop(data.draw(st.integers(0, len(actions) - 1)))
    with pytest.raises(ValueError, match=f"stage {stage}.*micro-batch {dropped.micro_batch}, chunk {dropped.chunk}"):
        check_plan(changed(plan, stage, actions), **SIZE)


@given(plan=plans, stage=st.integers(0, 2), data=st.data())
def test_a_repeated_action_is_refused(plan: Plan, stage: int, data: st.DataObject) -> None:
    actions = list(plan[stage])
    repeated = data.draw(st.sampled_from(actions))
    actions.insert(data.draw(st.integers(0, len(actions))), repeated)
    with pytest.raises(ValueError, match=f"stage {stage} runs {repeated} 2 times"):
        check_plan(changed(plan, stage, actions), **SIZE)


@given(plan=plans, stage=st.integers(0, 2), data=st.data())
def test_an_action_that_does_not_exist_is_refused(plan: Plan, stage: int, data: st.DataObject) -> None:
    actions = list(plan[stage])
    position = data.draw(st.integers(0, len(actions) - 1))
    actions[position] = replace(actions[position], **data.draw(st.sampled_from([{"micro_batch": 4}, {"chunk": 2}])))
    with pytest.raises(ValueError, match="micro-batches, 2 chunks"):
        check_plan(changed(plan, stage, actions), **SIZE)


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_backward_before_forward_is_refused(schedule: Schedule) -> None:
    size = {"stages": 2, "chunks": 1, "micro_batches": 4}
    plan = make_plan(schedule, **size)
    backwards_first = sorted(plan[1], key=lambda action: action.kind is Kind.FORWARD)
    with pytest.raises(ValueError, match="stage 1 runs backward.* before its forward"):
        check_plan(changed(plan, 1, backwards_first), **size)


def test_weight_gradient_before_input_gradient_is_refused() -> None:
    size = {"stages": 2, "chunks": 1, "micro_batches": 2}
    order = {Kind.FORWARD: 0, Kind.BACKWARD_WEIGHT: 1, Kind.BACKWARD_INPUT: 2}
    plan = make_plan("zero-bubble", **size)
    with pytest.raises(ValueError, match="stage 0 runs backward-weight.* before its backward-input"):
        check_plan(changed(plan, 0, sorted(plan[0], key=lambda action: order[action.kind])), **size)


def test_whole_and_divided_backward_of_the_same_micro_batch_are_refused() -> None:
    size = {"stages": 1, "chunks": 1, "micro_batches": 2}
    (actions,) = make_plan("zero-bubble", **size)
    twice = (*actions, Action(kind=Kind.BACKWARD, micro_batch=0, chunk=0))
    with pytest.raises(ValueError, match="stage 0 runs backward, backward-input, backward-weight, forward of"):
        check_plan((twice,), **size)


def test_an_order_that_deadlocks_is_refused() -> None:
    """Each stage's own order is possible; together the first waits for a backward that waits for its next forward."""
    size = {"stages": 2, "chunks": 1, "micro_batches": 2}
    first, _ = make_plan("1f1b", stages=1, chunks=1, micro_batches=2) + ((),)
    last = make_plan("forward-only", **size)[1] + tuple(
        Action(kind=Kind.BACKWARD, micro_batch=micro_batch, chunk=0) for micro_batch in range(2)
    )
    with pytest.raises(ValueError, match="deadlock.*stage 0 stops before backward of micro-batch 0") as error:
        check_plan((first, last), **size)
    assert "stage 1 stops before forward of micro-batch 1" in str(error.value)


def test_a_plan_for_other_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="2 stages, not 3"):
        check_plan(make_plan("1f1b", stages=2, chunks=1, micro_batches=1), stages=3, chunks=1, micro_batches=1)
