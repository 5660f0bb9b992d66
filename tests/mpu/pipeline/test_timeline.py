"""Bubble and memory of the plans are those of the papers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.mpu.pipeline.plan import Kind, Plan, Schedule, make_plan, needed_by, part_of
from megatron.mpu.pipeline.timeline import Timeline, simulate

stages_ = st.integers(1, 8)
chunks_ = st.integers(1, 4)
micro_batches_ = st.integers(1, 24)


def timeline_of(schedule: Schedule, stages: int, chunks: int, micro_batches: int) -> Timeline:
    plan = make_plan(schedule, stages=stages, chunks=chunks, micro_batches=micro_batches)
    return simulate(plan, stages=stages, chunks=chunks)


@given(stages_, micro_batches_)
def test_1f1b(stages: int, micro_batches: int) -> None:
    timeline = timeline_of("1f1b", stages, 1, micro_batches)
    assert timeline.bubble == pytest.approx((stages - 1) / micro_batches)
    assert timeline.peak_live == tuple(min(stages - stage, micro_batches) for stage in range(stages))
    assert timeline.peak_held == timeline.peak_live
    assert timeline.peak_waiting == (0,) * stages


@given(stages_, st.integers(2, 4), st.integers(1, 5))
def test_interleaved_with_whole_groups(stages: int, chunks: int, groups: int) -> None:
    timeline = timeline_of("interleaved", stages, chunks, stages * groups)
    assert timeline.bubble == pytest.approx((stages - 1) / (chunks * stages * groups))
    warm_up = [2 * (stages - stage - 1) + (chunks - 1) * stages for stage in range(stages)]
    assert timeline.peak_live == tuple(min(ahead + 1, stages * groups * chunks) for ahead in warm_up)


@given(stages_, chunks_, micro_batches_)
def test_interleaved_with_any_number_of_micro_batches(stages: int, chunks: int, micro_batches: int) -> None:
    """Not slower than 1F1B, not faster than the bound, and no more memory than with whole groups."""
    timeline = timeline_of("interleaved", stages, chunks, micro_batches)
    assert (stages - 1) / chunks <= timeline.bubble * micro_batches + 1e-9
    assert timeline.bubble * micro_batches <= stages - 1 + 1e-9
    whole = timeline_of("interleaved", stages, chunks, -(-micro_batches // stages) * stages)
    assert all(a <= b for a, b in zip(timeline.peak_live, whole.peak_live, strict=True))


@given(st.integers(2, 8), micro_batches_)
def test_zero_bubble(stages: int, micro_batches: int) -> None:
    """The bubble of ZB-H1 is a third of 1F1B's from `stages` micro-batches on; memory stays below 1F1B's largest."""
    timeline = timeline_of("zero-bubble", stages, 1, micro_batches)
    longer = max(stages - micro_batches, 0)
    assert timeline.bubble == pytest.approx((stages - 1 + longer) / (3 * micro_batches))
    assert timeline.bubble < timeline_of("1f1b", stages, 1, micro_batches).bubble
    assert all(live <= min(stages - stage, micro_batches) for stage, live in enumerate(timeline.peak_live))
    assert timeline.peak_held == (min(stages, micro_batches),) * stages
    assert max(timeline.peak_held) == max(timeline_of("1f1b", stages, 1, micro_batches).peak_live)


@given(stages_, chunks_, st.integers(1, 5))
def test_forward_only_with_whole_groups_loses_the_start_and_the_end_only(stages: int, chunks: int, groups: int) -> None:
    timeline = timeline_of("forward-only", stages, chunks, stages * groups)
    assert timeline.makespan == pytest.approx(stages * groups + (stages - 1) / chunks)
    assert timeline.bubble == pytest.approx((stages - 1) / (chunks * stages * groups))


schedules_and_chunks = st.one_of(
    st.tuples(st.sampled_from(["1f1b", "zero-bubble"]), st.just(1)),
    st.tuples(st.sampled_from(["interleaved", "forward-only"]), chunks_),
)


@given(schedules_and_chunks, stages_, st.integers(0, 24))
def test_nothing_runs_before_what_it_needs_nor_beside_another(
    schedule_and_chunks: tuple[Schedule, int], stages: int, micro_batches: int
) -> None:
    schedule, chunks = schedule_and_chunks
    timeline = timeline_of(schedule, stages, chunks, micro_batches)
    made = {}
    for stage, actions in enumerate(timeline.plan):
        for action, finish in zip(actions, timeline.finish[stage], strict=True):
            name = "activation" if action.kind is Kind.FORWARD else "gradient"
            if action.kind is not Kind.BACKWARD_WEIGHT:
                made[name, action.micro_batch, part_of(stage, action.chunk, stages)] = finish
    for stage, actions in enumerate(timeline.plan):
        free = 0.0
        for action, start, finish in zip(actions, timeline.start[stage], timeline.finish[stage], strict=True):
            part = part_of(stage, action.chunk, stages)
            needed = [made[value] for value in needed_by(action, part, stages * chunks - 1)]
            assert start == max([free, *needed])
            free = finish
            cost = 2 if action.kind is Kind.BACKWARD else 1
            assert finish - start == pytest.approx(cost / chunks)


def test_a_step_without_micro_batches_has_no_bubble() -> None:
    timeline = timeline_of("1f1b", 4, 1, 0)
    assert (timeline.makespan, timeline.bubble, timeline.peak_live) == (0.0, 0.0, (0, 0, 0, 0))


def test_costs_are_the_callers() -> None:
    cost = {Kind.FORWARD: 1.5, Kind.BACKWARD: 5.0}
    plan = make_plan("1f1b", stages=3, chunks=1, micro_batches=4)
    timeline = simulate(plan, stages=3, chunks=1, cost=cost)
    assert timeline.makespan == (4 + 2) * 6.5


def test_a_plan_that_deadlocks_has_no_time() -> None:
    reverse: Plan = tuple(actions[::-1] for actions in make_plan("1f1b", stages=2, chunks=1, micro_batches=2))
    with pytest.raises(ValueError, match="deadlock"):
        simulate(reverse, stages=2, chunks=1)
