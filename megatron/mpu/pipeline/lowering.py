"""From a plan to instructions: where each stage sends and receives. Pure data, no torch.

Two neighbours that post their messages to each other in different orders can block one communicator for good; a receive
just before its use already does so for 1F1B with two stages. Here every message has a time, that of its producer's end
in unit time, and all messages of the pipeline one order. Every stage posts its own in this order, and before the
computes that start at the same time or later. So any two stages post the same sequence, one's send against the other's
receive; and since each instruction of the pipeline only waits for earlier ones of one common order, no stage can wait
for ever, even if every send and receive blocked its stage until both sides were there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from megatron.mpu.pipeline.plan import Action, Plan, made_by, part_of
from megatron.mpu.pipeline.timeline import simulate


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What travels: the output of a part for the next one, or the gradient of its input for the one before.

    part: the part of the model (0..stages*chunks-1) that produced it.
    """

    kind: Literal["activation", "gradient"]
    micro_batch: int
    part: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Post a message to the stage `peer`; its producer has been computed before."""

    peer: int
    message: Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Receive:
    """Post the receive of a message from the stage `peer`; the compute that needs it follows later."""

    peer: int
    message: Message


Instruction: TypeAlias = Action | Send | Receive


def lower(plan: Plan, *, stages: int, chunks: int) -> tuple[tuple[Instruction, ...], ...]:
    """The instructions of each stage: its actions in the plan's order with the sends and receives between them.

    Parts on the same stage hand over without a message. Raises `ValueError` if the plan deadlocks.
    """
    timeline = simulate(plan, stages=stages, chunks=chunks)
    messages: list[tuple[float, str, int, int, int, int, Message]] = []
    placed: list[list[tuple[float, int, int, Instruction]]] = []  # time, messages first, order, instruction
    for stage, actions in enumerate(plan):
        placed.append([(timeline.start[stage][i], 1, i, action) for i, action in enumerate(actions)])
        for action, time in zip(actions, timeline.finish[stage], strict=True):
            part = part_of(stage, action.chunk, stages)
            value = made_by(action, part)
            if value is None:
                continue
            consumer = part + 1 if value[0] == "activation" else part - 1
            if 0 <= consumer < stages * chunks and consumer % stages != stage:
                message = Message(kind=value[0], micro_batch=action.micro_batch, part=part)
                messages.append((time, *value, stage, consumer % stages, message))
    for order, (time, _, _, _, source, target, message) in enumerate(sorted(messages, key=lambda entry: entry[:4])):
        placed[source].append((time, 0, order, Send(peer=target, message=message)))
        placed[target].append((time, 0, order, Receive(peer=source, message=message)))
    return tuple(tuple(entry[3] for entry in sorted(entries, key=lambda entry: entry[:3])) for entries in placed)
