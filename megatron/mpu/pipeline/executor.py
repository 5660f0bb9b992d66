"""Runs a plan: one loop over instructions, which owns communication and activations and knows nothing of the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.group import Pending
from megatron.mpu.layers import put_off_weight_gradients
from megatron.mpu.linear import WeightQueue
from megatron.mpu.pipeline.lowering import Instruction, Message, Receive, Send, lower
from megatron.mpu.pipeline.plan import Action, Kind, Schedule, make_plan, part_of
from megatron.mpu.random import local_rows

Forward = Callable[[int, int, Tensor | None], Tensor]
"""(chunk, micro-batch, input) -> output. The input is that of the part before, None for the first part; the output is
for the next part, or of the last part the loss to differentiate."""

_SENDS_UNDER_WAY = 8


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How steps go through a stage's chunks.

    dtype: of what passes between parts, whose shape by micro-batch is `boundary`. queues: the chunks' weight queues,
    for zero-bubble. traced: take the times of actions after the device's work, which costs some.
    """

    schedule: Schedule
    chunks: int
    context: ParallelContext
    dtype: torch.dtype
    queues: Sequence[WeightQueue] = ()
    traced: bool = False

    def train(self, micro_batches: int, forward: Forward, boundary: Callable[[int], tuple[int, ...]]) -> list[Timed]:
        """Forward and backward of every micro-batch; gradients go where the parameters have them."""
        return _execute(self, self.schedule, micro_batches, forward, boundary)

    @torch.no_grad()
    def evaluate(self, micro_batches: int, forward: Forward, boundary: Callable[[int], tuple[int, ...]]) -> None:
        """Forward of every micro-batch."""
        _execute(self, "forward-only", micro_batches, forward, boundary)


def new_pipeline(
    chunks: Sequence[nn.Module],
    schedule: Schedule,
    dtype: torch.dtype,
    context: ParallelContext,
    *,
    traced: bool = False,
) -> Pipeline:
    """The pipeline of a stage with these chunks of the model."""
    queues = [put_off_weight_gradients(chunk) for chunk in chunks] if schedule == "zero-bubble" else []
    return Pipeline(schedule=schedule, chunks=len(chunks), context=context, dtype=dtype, queues=queues, traced=traced)


def boundary_shape(sequence: int, samples: int, hidden: int, context: ParallelContext) -> tuple[int, ...]:
    """Shape of this rank's hidden states of a micro-batch between parts of the model."""
    rows = local_rows(sequence, context)
    return rows.stop - rows.start, samples, hidden


@dataclass(frozen=True, kw_only=True)
class Timed:
    """An action as it was executed; seconds of `time.time()`, which the stages of a host share."""

    action: Action
    start: float
    finish: float


@dataclass
class _State:
    """What a stage holds during a step, by (micro-batch, chunk) or message."""

    pipeline: Pipeline
    forward: Forward
    boundary: Callable[[int], tuple[int, ...]]
    inputs: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)
    outputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    products: dict[tuple[int, int], list[Callable[[], None]]] = field(default_factory=dict)
    made: dict[Message, Tensor] = field(default_factory=dict)
    arriving: dict[Message, tuple[Tensor, Pending]] = field(default_factory=dict)
    leaving: list[tuple[Tensor, Pending]] = field(default_factory=list)


@lru_cache(maxsize=64)
def _instructions(
    schedule: Schedule, stages: int, chunks: int, micro_batches: int
) -> tuple[tuple[Instruction, ...], ...]:
    plan = make_plan(schedule, stages=stages, chunks=chunks, micro_batches=micro_batches)
    return lower(plan, stages=stages, chunks=chunks)


def _execute(
    pipeline: Pipeline,
    schedule: Schedule,
    micro_batches: int,
    forward: Forward,
    boundary: Callable[[int], tuple[int, ...]],
) -> list[Timed]:
    group = pipeline.context.pipeline
    state = _State(pipeline=pipeline, forward=forward, boundary=boundary)
    trace: list[Timed] = []
    for instruction in _instructions(schedule, group.size, pipeline.chunks, micro_batches)[group.rank]:
        if isinstance(instruction, Send):
            tensor = _sliced(state.made.pop(instruction.message), pipeline.context)
            state.leaving.append((tensor, group.start_send(tensor, instruction.peer)))
            if len(state.leaving) > _SENDS_UNDER_WAY:  # what was sent is kept until it has arrived
                state.leaving.pop(0)[1].wait()
        elif isinstance(instruction, Receive):
            shape = _slice_shape(boundary(instruction.message.micro_batch), pipeline.context)
            tensor = torch.empty(shape, dtype=pipeline.dtype, device=pipeline.context.device)
            state.arriving[instruction.message] = tensor, group.start_receive(tensor, instruction.peer)
        else:
            received = _needed(instruction, state)
            start = _clock(pipeline)
            _compute(instruction, received, state)
            trace.append(Timed(action=instruction, start=start, finish=_clock(pipeline)))
    for _, pending in state.leaving:
        pending.wait()
    return trace


def _clock(pipeline: Pipeline) -> float:
    """The time, after the device's work where the trace is wanted."""
    if pipeline.traced and pipeline.context.device.type == "cuda":
        torch.cuda.synchronize()
    return time.time()


def _part(action: Action, state: _State) -> int:
    """The part of the model that an action computes with."""
    pipeline = state.pipeline.context.pipeline
    return part_of(pipeline.rank, action.chunk, pipeline.size)


def _needed(action: Action, state: _State) -> Tensor | None:
    """What another part made for an action: its input, or the gradient of its output."""
    part = _part(action, state)
    if action.kind is Kind.FORWARD:
        return _take("activation", action, part - 1, state) if part > 0 else None
    last = state.pipeline.chunks * state.pipeline.context.pipeline.size - 1
    if action.kind is Kind.BACKWARD_WEIGHT or part == last:
        return None
    return _take("gradient", action, part + 1, state)


def _compute(action: Action, received: Tensor | None, state: _State) -> None:
    key, part = (action.micro_batch, action.chunk), _part(action, state)
    if action.kind is Kind.FORWARD:
        if received is not None and torch.is_grad_enabled():
            received.requires_grad_()
        output = state.forward(action.chunk, action.micro_batch, received)
        if torch.is_grad_enabled():
            state.inputs[key], state.outputs[key] = received, output
        _give("activation", action, part, output.detach(), state)
    elif action.kind is Kind.BACKWARD_WEIGHT:
        for product in state.products.pop(key):
            product()
    else:
        x, output = state.inputs.pop(key), state.outputs.pop(key)
        if action.kind is Kind.BACKWARD_INPUT:
            queue = state.pipeline.queues[action.chunk]
            queue.open = True
            torch.autograd.backward(output, received)
            queue.open = False
            state.products[key] = queue.take()
        else:
            torch.autograd.backward(output, received)
        if x is not None:
            # None where the part begins with frozen layers: the part before waits for something all the same.
            gradient = torch.zeros_like(x) if x.grad is None else x.grad
            _give("gradient", action, part, gradient, state)


def _give(kind: Literal["activation", "gradient"], action: Action, part: int, tensor: Tensor, state: _State) -> None:
    """Keep what a part made for the part that needs it, if there is one."""
    if kind == "gradient" or part < state.pipeline.chunks * state.pipeline.context.pipeline.size - 1:
        state.made[Message(kind=kind, micro_batch=action.micro_batch, part=part)] = tensor


def _take(kind: Literal["activation", "gradient"], action: Action, part: int, state: _State) -> Tensor:
    """What a part made: on this stage, or received."""
    message = Message(kind=kind, micro_batch=action.micro_batch, part=part)
    if message in state.made:
        return state.made.pop(message)
    tensor, pending = state.arriving.pop(message)
    pending.wait()
    return _unsliced(tensor, state.boundary(message.micro_batch), state.pipeline.context)


def _is_sliced(context: ParallelContext) -> bool:
    """Whether each tensor-parallel rank sends its part of what all of them hold (Megatron-LM's scatter-gather)."""
    return context.tensor.size > 1 and not context.sequence_parallel


def _slice_shape(shape: tuple[int, ...], context: ParallelContext) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] // context.tensor.size) if _is_sliced(context) else shape


def _sliced(tensor: Tensor, context: ParallelContext) -> Tensor:
    if _is_sliced(context):
        tensor = tensor.chunk(context.tensor.size, -1)[context.tensor.rank]
    return tensor.contiguous()


def _unsliced(tensor: Tensor, shape: tuple[int, ...], context: ParallelContext) -> Tensor:
    return context.tensor.all_gather(tensor, len(shape) - 1) if _is_sliced(context) else tensor


def write_trace(trace: Sequence[Timed], folder: Path, stage: int) -> None:
    """The trace of a step as JSON lines, for tools/show_schedule.py."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {
            "kind": timed.action.kind.value,
            "micro_batch": timed.action.micro_batch,
            "chunk": timed.action.chunk,
            "start": timed.start,
            "finish": timed.finish,
        }
        for timed in trace
    ]
    path = folder / f"pipeline_stage_{stage}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
