"""What each stage of a pipeline computes, and in which order. Pure data, no torch.

The model is cut into `stages * chunks` parts, numbered in order of the forward pass. Part g stands on stage
g % stages as its chunk g // stages, so that with several chunks the stages take turns along the model. A plan holds the
actions of each stage in the order in which it computes them; sends and receives follow from it (`lowering.py`), and so
do bubble and memory (`timeline.py`).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias


class Kind(enum.Enum):
    """What an action computes. A backward is whole, or divided into the gradients of the input and of the weights."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward-input"
    BACKWARD_WEIGHT = "backward-weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One computation of a stage: a micro-batch (0..m-1) through one of the stage's own chunks (0..chunks-1)."""

    kind: Kind
    micro_batch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.kind.value} of micro-batch {self.micro_batch}, chunk {self.chunk}"


Plan: TypeAlias = tuple[tuple[Action, ...], ...]
"""The actions of each stage, in order."""

Schedule = Literal["1f1b", "interleaved", "zero-bubble", "forward-only"]

Value: TypeAlias = tuple[Literal["activation", "gradient"], int, int]
"""What an action leaves for others: kind, micro-batch, and the part that made it."""


def part_of(stage: int, chunk: int, stages: int) -> int:
    """The part of the model that is chunk `chunk` of a stage."""
    return chunk * stages + stage


def make_plan(schedule: Schedule, *, stages: int, chunks: int, micro_batches: int) -> Plan:
    """The plan of a step with `micro_batches` micro-batches; empty for every stage if there are none.

    - `1f1b`: PipeDream-flush (Narayanan et al., arXiv 2104.04473); one chunk. Stage r holds at most
      min(stages - r, micro_batches) activations.
    - `interleaved`: Megatron's virtual stages (same paper), for any number of micro-batches and from one stage on; with
      one chunk it is `1f1b`.
    - `zero-bubble`: ZB-H1 (Qi et al., arXiv 2401.10241); one chunk. Forwards and backwards run ahead as in 1F1B;
      weight gradients are put off to fill the bubble. Stage r holds at most min(stages - r, micro_batches)
      activations whose backward is still to come, and min(stages, micro_batches) together with those that wait for
      their weight gradient: no stage holds more than the first stage of 1F1B.
    - `forward-only`: evaluation; any number of chunks.

    Raises `ValueError` for sizes that are not positive and for more chunks than the schedule can have.
    """
    if stages < 1 or chunks < 1 or micro_batches < 0:
        raise ValueError(f"no plan for {stages} stages, {chunks} chunks and {micro_batches} micro-batches")
    if schedule in ("1f1b", "zero-bubble") and chunks > 1:
        raise ValueError(f"the schedule {schedule} has one chunk a stage, not {chunks}; interleaved can have more")
    if schedule == "forward-only":
        return tuple(tuple(_forwards(stages, chunks, micro_batches)) for _ in range(stages))
    if schedule == "zero-bubble":
        return tuple(tuple(_zero_bubble(stage, stages, micro_batches)) for stage in range(stages))
    if schedule in ("1f1b", "interleaved"):
        return tuple(tuple(_one_forward_one_backward(r, stages, chunks, micro_batches)) for r in range(stages))
    raise ValueError(f"there is no schedule {schedule!r}")


def _forwards(stages: int, chunks: int, micro_batches: int) -> Iterator[Action]:
    """All forwards: groups of `stages` micro-batches pass chunk by chunk; the last group may be smaller."""
    for first in range(0, micro_batches, stages):
        for chunk in range(chunks):
            for micro_batch in range(first, min(first + stages, micro_batches)):
                yield Action(kind=Kind.FORWARD, micro_batch=micro_batch, chunk=chunk)


def _one_forward_one_backward(stage: int, stages: int, chunks: int, micro_batches: int) -> Iterator[Action]:
    """Warm-up forwards, then a forward and a backward in turn, then the backwards that are left.

    With several chunks the order is that of whole groups of `stages` micro-batches, without those that do not exist:
    nothing waits for them, so what is left can run as before. (The warm-up of Megatron with a last group that is really
    smaller would deadlock, as in 8 stages of 4 chunks with 9 micro-batches.) A smaller group costs time, but never
    so much that the bubble is larger than that of 1F1B.
    """
    rounded = micro_batches if chunks == 1 else -(-micro_batches // stages) * stages
    forwards = list(_forwards(stages, chunks, rounded))
    backwards = [Action(kind=Kind.BACKWARD, micro_batch=f.micro_batch, chunk=chunks - 1 - f.chunk) for f in forwards]
    ahead = stages - stage - 1
    warm_up = min(ahead if chunks == 1 else 2 * ahead + (chunks - 1) * stages, len(forwards))
    pairs = zip(forwards[warm_up:], backwards, strict=False)
    actions = chain(forwards[:warm_up], chain.from_iterable(pairs), backwards[len(forwards) - warm_up :])
    return (action for action in actions if action.micro_batch < micro_batches)


def _zero_bubble(stage: int, stages: int, micro_batches: int) -> Iterator[Action]:
    """1F1B with the weight gradients `stage` micro-batches behind their input gradients.

    The later a stage, the fewer forwards it runs ahead and the more weight gradients it may keep for its idle end.
    """
    warm_up = min(stages - stage - 1, micro_batches)
    for micro_batch in range(warm_up):
        yield Action(kind=Kind.FORWARD, micro_batch=micro_batch, chunk=0)
    for micro_batch in range(micro_batches):
        if micro_batch + warm_up < micro_batches:
            yield Action(kind=Kind.FORWARD, micro_batch=micro_batch + warm_up, chunk=0)
        yield Action(kind=Kind.BACKWARD_INPUT, micro_batch=micro_batch, chunk=0)
        if micro_batch >= stage:
            yield Action(kind=Kind.BACKWARD_WEIGHT, micro_batch=micro_batch - stage, chunk=0)
    for micro_batch in range(max(micro_batches - stage, 0), micro_batches):
        yield Action(kind=Kind.BACKWARD_WEIGHT, micro_batch=micro_batch, chunk=0)


def made_by(action: Action, part: int) -> Value | None:
    """What an action on a part leaves for others; a weight gradient leaves nothing."""
    if action.kind is Kind.BACKWARD_WEIGHT:
        return None
    return "activation" if action.kind is Kind.FORWARD else "gradient", action.micro_batch, part


def needed_by(action: Action, part: int, last_part: int) -> tuple[Value, ...]:
    """What must be there before an action on a part can run."""
    micro_batch = action.micro_batch
    if action.kind is Kind.FORWARD:
        return (("activation", micro_batch, part - 1),) if part > 0 else ()
    if action.kind is Kind.BACKWARD_WEIGHT:
        return (("gradient", micro_batch, part),)
    own: Value = ("activation", micro_batch, part)
    return (own, ("gradient", micro_batch, part + 1)) if part < last_part else (own,)


def run_order(plan: Plan, *, stages: int, chunks: int) -> Iterator[tuple[int, Action, int]]:
    """(stage, action, part) of every action, each after all that it needs, in the plan's order on each stage.

    Raises `ValueError` at the end if some stage could not finish: every stage that is left waits for another.
    """
    last_part = stages * chunks - 1
    position = [0] * stages
    made: set[Value] = set()
    waiting: dict[Value, list[int]] = {}
    ready = list(range(stages))[::-1]
    while ready:
        stage = ready.pop()
        while position[stage] < len(plan[stage]):
            action = plan[stage][position[stage]]
            part = part_of(stage, action.chunk, stages)
            missing = next((value for value in needed_by(action, part, last_part) if value not in made), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(stage)
                break
            yield stage, action, part
            position[stage] += 1
            value = made_by(action, part)
            if value is not None:
                made.add(value)
                ready += waiting.pop(value, ())
    stuck = [
        f"stage {stage} stops before {plan[stage][position[stage]]}, for want of the {kind} of part {part}"
        for (kind, _, part), stages_waiting in waiting.items()
        for stage in stages_waiting
    ]
    if stuck:
        raise ValueError("the plan deadlocks: " + "; ".join(stuck))


def check_plan(plan: Plan, *, stages: int, chunks: int, micro_batches: int) -> None:
    """Prove that a plan does each piece of work exactly once and comes to its end.

    Every micro-batch passes every part forward; and, unless no stage of the plan has a backward at all, it passes back,
    either whole or as input gradient and weight gradient. Raises `ValueError` that says what is wrong.
    """
    if len(plan) != stages:
        raise ValueError(f"the plan is for {len(plan)} stages, not {stages}")
    training = any(action.kind is not Kind.FORWARD for actions in plan for action in actions)
    for stage, actions in enumerate(plan):
        counts = Counter((action.kind, action.micro_batch, action.chunk) for action in actions)
        for (kind, micro_batch, chunk), count in counts.items():
            action = Action(kind=kind, micro_batch=micro_batch, chunk=chunk)
            if not (0 <= micro_batch < micro_batches and 0 <= chunk < chunks):
                raise ValueError(f"stage {stage} has no {action}: {micro_batches} micro-batches, {chunks} chunks")
            if count > 1:
                raise ValueError(f"stage {stage} runs {action} {count} times")
        for micro_batch in range(micro_batches):
            for chunk in range(chunks):
                kinds = {kind for kind in Kind if (kind, micro_batch, chunk) in counts}
                backward = kinds - {Kind.FORWARD}
                if Kind.FORWARD not in kinds or (training and backward not in _BACKWARDS):
                    there = ", ".join(sorted(kind.value for kind in kinds)) or "nothing"
                    needed = "forward, and backward or backward-input and backward-weight" if training else "forward"
                    raise ValueError(
                        f"stage {stage} runs {there} of micro-batch {micro_batch}, chunk {chunk}; it takes {needed}"
                    )
        _check_order(stage, actions)
    for _ in run_order(plan, stages=stages, chunks=chunks):
        pass


_BACKWARDS = ({Kind.BACKWARD}, {Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT})


def _check_order(stage: int, actions: tuple[Action, ...]) -> None:
    """Forward before backward before weight gradient, for each micro-batch and chunk of a stage."""
    seen: set[tuple[Kind, int, int]] = set()
    for action in actions:
        if action.kind is not Kind.FORWARD:
            before = Kind.BACKWARD_INPUT if action.kind is Kind.BACKWARD_WEIGHT else Kind.FORWARD
            if (before, action.micro_batch, action.chunk) not in seen:
                raise ValueError(f"stage {stage} runs {action} before its {before.value}")
        seen.add((action.kind, action.micro_batch, action.chunk))
