"""When each action of a plan runs: in unit time, computed, or in seconds, measured. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from types import MappingProxyType

from megatron.mpu.pipeline.plan import Kind, Plan, Value, made_by, needed_by, run_order

UNIT_COST: Mapping[Kind, float] = MappingProxyType(
    {Kind.FORWARD: 1, Kind.BACKWARD: 2, Kind.BACKWARD_INPUT: 1, Kind.BACKWARD_WEIGHT: 1}
)
"""Time of an action relative to a forward: a backward has two matrix products for the forward's one."""

_LIVE = {Kind.FORWARD: 1, Kind.BACKWARD: -1, Kind.BACKWARD_INPUT: -1, Kind.BACKWARD_WEIGHT: 0}
_WAITING = {Kind.FORWARD: 0, Kind.BACKWARD: 0, Kind.BACKWARD_INPUT: 1, Kind.BACKWARD_WEIGHT: -1}
_HELD = {kind: _LIVE[kind] + _WAITING[kind] for kind in Kind}


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A plan with the start and finish of each action; `start[stage][i]` is that of `plan[stage][i]`.

    Activations are counted per stage, in micro-batches through one chunk (a chunk's activation is 1 / chunks of that of
    the stage).
    """

    plan: Plan
    start: tuple[tuple[float, ...], ...]
    finish: tuple[tuple[float, ...], ...]

    @property
    def origin(self) -> float:
        """The first start; 0 without actions."""
        return min(chain.from_iterable(self.start), default=0.0)

    @property
    def makespan(self) -> float:
        """From the first start to the last finish; 0 without actions."""
        return max(chain.from_iterable(self.finish), default=0.0) - self.origin

    @property
    def bubble(self) -> float:
        """Idle time relative to the time of work, (makespan - ideal) / ideal as in arXiv 2104.04473; 0 without work.

        The ideal is the mean time of work of the stages; in unit time it is the same for all of them.
        """
        work = sum(
            end - begin
            for starts, ends in zip(self.start, self.finish, strict=True)
            for begin, end in zip(starts, ends, strict=True)
        )
        return (len(self.plan) * self.makespan - work) / work if work else 0.0

    @property
    def peak_live(self) -> tuple[int, ...]:
        """Most activations at a time between the end of their forward and that of their (input) backward."""
        return self._peak(_LIVE)

    @property
    def peak_waiting(self) -> tuple[int, ...]:
        """Most inputs and output gradients kept at a time for a weight gradient that is still to come."""
        return self._peak(_WAITING)

    @property
    def peak_held(self) -> tuple[int, ...]:
        """Most micro-batches at a time of which something is kept: live or waiting for the weight gradient."""
        return self._peak(_HELD)

    def _peak(self, change: Mapping[Kind, int]) -> tuple[int, ...]:
        return tuple(max(accumulate((change[action.kind] for action in actions), initial=0)) for actions in self.plan)


def simulate(plan: Plan, *, stages: int, chunks: int, cost: Mapping[Kind, float] = UNIT_COST) -> Timeline:
    """Run a plan with actions of given cost, communication that takes no time, and no waiting but for what is needed.

    cost: time of an action on a whole stage; one on a chunk takes 1 / chunks of it. Raises `ValueError` if the plan
    deadlocks.
    """
    ready: dict[Value, float] = {}
    starts: list[list[float]] = [[] for _ in range(stages)]
    finishes: list[list[float]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    for stage, action, part in run_order(plan, stages=stages, chunks=chunks):
        begin = max([free[stage], *(ready[value] for value in needed_by(action, part, stages * chunks - 1))])
        free[stage] = end = begin + cost[action.kind]
        starts[stage].append(begin / chunks)  # divided last: sums of whole costs stay exact
        finishes[stage].append(end / chunks)
        value = made_by(action, part)
        if value is not None:
            ready[value] = end
    return Timeline(plan=plan, start=tuple(map(tuple, starts)), finish=tuple(map(tuple, finishes)))
