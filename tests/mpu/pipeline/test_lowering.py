"""Sends and receives mirror, and no execution of them can block for good."""

from collections import deque
from collections.abc import Sequence
from itertools import combinations

import pytest

from megatron.mpu.pipeline.lowering import Instruction, Message, Receive, Send, lower
from megatron.mpu.pipeline.plan import Action, Kind, Plan, Schedule, made_by, make_plan, needed_by, part_of
from tests.mpu.pipeline.test_plan import SCHEDULES, sizes

Program = Sequence[Sequence[Instruction]]


def message_of(value: tuple[str, int, int]) -> Message:
    kind, micro_batch, part = value
    return Message(kind="activation" if kind == "activation" else "gradient", micro_batch=micro_batch, part=part)


def naive(plan: Plan, *, stages: int, chunks: int) -> Program:
    """Every receive just before its use and every send just after its producer."""
    program: list[list[Instruction]] = [[] for _ in plan]
    for stage, actions in enumerate(plan):
        for action in actions:
            part = part_of(stage, action.chunk, stages)
            for value in needed_by(action, part, stages * chunks - 1):
                if value[2] % stages != stage:
                    program[stage].append(Receive(peer=value[2] % stages, message=message_of(value)))
            program[stage].append(action)
            value_made = made_by(action, part)
            if value_made is not None:
                consumer = part + 1 if value_made[0] == "activation" else part - 1
                if 0 <= consumer < stages * chunks and consumer % stages != stage:
                    program[stage].append(Send(peer=consumer % stages, message=message_of(value_made)))
    return program


def mirrored(program: Program) -> bool:
    """Whether every two stages post the same messages to each other in the same order, one's send as the other's
    receive."""

    def posted(stage: int, peer: int) -> list[tuple[Message, bool]]:
        own = [entry for entry in program[stage] if not isinstance(entry, Action) and entry.peer == peer]
        return [(entry.message, isinstance(entry, Send)) for entry in own]

    return all(
        posted(a, b) == [(message, not sent) for message, sent in posted(b, a)]
        for a, b in combinations(range(len(program)), 2)
    )


def finishes_with_queues(program: Program, *, stages: int, chunks: int) -> bool:
    """Run with a queue of messages for each pair of stages, and one of computes for each stage.

    The hosts post everything at once. A message is exchanged when it stands at the head of the pair's queue on both
    sides and its producer has run; a compute runs when the ones before it have and what it needs has been received.
    """
    computes = [deque(entry for entry in own if isinstance(entry, Action)) for own in program]
    queues = {
        (stage, peer): deque(entry for entry in own if not isinstance(entry, Action) and entry.peer == peer)
        for stage, own in enumerate(program)
        for peer in range(stages)
    }
    there: list[set[Message]] = [set() for _ in program]
    progress = True
    while progress:
        progress = False
        for stage, own in enumerate(computes):
            while own:
                part = part_of(stage, own[0].chunk, stages)
                if not {message_of(v) for v in needed_by(own[0], part, stages * chunks - 1)} <= there[stage]:
                    break
                made = made_by(own.popleft(), part)
                there[stage] |= {message_of(made)} if made else set()
                progress = True
        for (stage, peer), own_queue in queues.items():
            other = queues[peer, stage]
            while (
                own_queue
                and other
                and isinstance(own_queue[0], Send)
                and other[0] == Receive(peer=stage, message=own_queue[0].message)
                and own_queue[0].message in there[stage]
            ):
                there[peer].add(own_queue.popleft().message)
                other.popleft()
                progress = True
    return not any(computes) and not any(queues.values())


def finishes_when_everything_blocks(program: Program, *, stages: int, chunks: int) -> bool:
    """Run with every send and receive blocking its stage until both sides are there."""
    position = [0] * stages
    there: list[set[Message]] = [set() for _ in program]
    progress = True
    while progress:
        progress = False
        for stage, own in enumerate(program):
            while position[stage] < len(own):
                entry = own[position[stage]]
                if isinstance(entry, Action):
                    part = part_of(stage, entry.chunk, stages)
                    assert {message_of(v) for v in needed_by(entry, part, stages * chunks - 1)} <= there[stage]
                    made = made_by(entry, part)
                    there[stage] |= {message_of(made)} if made else set()
                else:
                    peer_at = position[entry.peer]
                    if not isinstance(entry, Send) or peer_at == len(program[entry.peer]):
                        break
                    if program[entry.peer][peer_at] != Receive(peer=stage, message=entry.message):
                        break
                    assert entry.message in there[stage]
                    there[entry.peer].add(entry.message)
                    position[entry.peer] += 1
                position[stage] += 1
                progress = True
    return all(position[stage] == len(own) for stage, own in enumerate(program))


@pytest.mark.parametrize("stages", range(1, 9))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_messages_mirror_and_nothing_blocks(schedule: Schedule, stages: int) -> None:
    for size in sizes(schedule, stages):
        if size["micro_batches"] not in (0, 1, 2, stages - 1, stages, stages + 1, 2 * stages + 1, 13, 24):
            continue
        shape = {"stages": stages, "chunks": size["chunks"]}
        plan = make_plan(schedule, **size)
        program = lower(plan, **shape)
        assert tuple(tuple(entry for entry in own if isinstance(entry, Action)) for own in program) == plan
        assert mirrored(program), size
        assert finishes_with_queues(program, **shape), size
        assert finishes_when_everything_blocks(program, **shape), size


@pytest.mark.parametrize("stages", [2, 4])
def test_receiving_just_before_use_would_block(stages: int) -> None:
    """What the lowering is for; and a proof that the models of execution above can fail."""
    shape = {"stages": stages, "chunks": 1}
    program = naive(make_plan("1f1b", **shape, micro_batches=4), **shape)
    assert not mirrored(program)
    assert not finishes_with_queues(program, **shape)
    assert not finishes_when_everything_blocks(program, **shape)


def test_every_message_is_sent_once_between_neighbouring_parts() -> None:
    program = lower(make_plan("interleaved", stages=3, chunks=2, micro_batches=4), stages=3, chunks=2)
    sent = [entry.message for own in program for entry in own if isinstance(entry, Send)]
    expected = {Message(kind="activation", micro_batch=m, part=part) for m in range(4) for part in range(5)}
    expected |= {Message(kind="gradient", micro_batch=m, part=part) for m in range(4) for part in range(1, 6)}
    assert len(sent) == len(expected)
    assert set(sent) == expected


def test_a_send_follows_its_producer_and_a_receive_comes_before_its_consumer() -> None:
    first, last = lower(make_plan("1f1b", stages=2, chunks=1, micro_batches=2), stages=2, chunks=1)

    def action(kind: Kind, micro_batch: int) -> Action:
        return Action(kind=kind, micro_batch=micro_batch, chunk=0)

    def forward(micro_batch: int) -> Message:
        return Message(kind="activation", micro_batch=micro_batch, part=0)

    def back(micro_batch: int) -> Message:
        return Message(kind="gradient", micro_batch=micro_batch, part=1)

    assert first == (
        action(Kind.FORWARD, 0),
        Send(peer=1, message=forward(0)),
        action(Kind.FORWARD, 1),
        Send(peer=1, message=forward(1)),
        Receive(peer=1, message=back(0)),
        action(Kind.BACKWARD, 0),
        Receive(peer=1, message=back(1)),
        action(Kind.BACKWARD, 1),
    )
    assert last == (
        Receive(peer=0, message=forward(0)),
        action(Kind.FORWARD, 0),
        Receive(peer=0, message=forward(1)),  # sent now, used later
        action(Kind.BACKWARD, 0),
        Send(peer=0, message=back(0)),
        action(Kind.FORWARD, 1),
        action(Kind.BACKWARD, 1),
        Send(peer=0, message=back(1)),
    )


@pytest.mark.parametrize("chunks", range(1, 5))
def test_one_stage_sends_nothing(chunks: int) -> None:
    plan = make_plan("interleaved", stages=1, chunks=chunks, micro_batches=5)
    assert lower(plan, stages=1, chunks=chunks) == plan
