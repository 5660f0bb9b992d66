"""Device time by group, from made-up events of a profiler: a backward has a thread of its own."""

from __future__ import annotations

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from megatron.training.step_times import step_times


def event(
    name: str, start: int, end: int, *, thread: int = 1, inside: FunctionEvent | None = None, kernel: int = 0
) -> FunctionEvent:
    """A call on the host from `start` to `end`, and the time of its kernel on the device; microseconds."""
    made = FunctionEvent(
        id=start, name=name, thread=thread, start_us=start, end_us=end, use_device="cuda",
        device_type=DeviceType.CPU, is_user_annotation=not name.startswith(("aten", "nccl", "megatron")),
    )  # fmt: skip
    if inside is not None:
        inside.append_cpu_child(made)
        made.set_cpu_parent(inside)
    if kernel:
        made.append_kernel("kernel", 0, kernel)
    return made


def test_device_time_of_a_step() -> None:
    step = event("step", 0, 200)
    optimizer = event("optimizer", 120, 190, inside=step)
    reduction = event("communication: all-reduce, data group", 120, 140, inside=optimizer)
    events = [
        step, optimizer, reduction,
        event("loader", 0, 10, inside=step, kernel=10),  # the device's side of a span is no work
        event("aten::mm", 20, 22, inside=step, kernel=40),
        event("megatron::gelu", 22, 24, inside=step, kernel=8),
        event("megatron::softmax", 24, 26, inside=step, kernel=3),
        event("megatron::add_product_", 26, 28, inside=step, kernel=4),
        event("aten::bmm", 40, 42, thread=2, kernel=30),
        event("nccl:all_reduce", 121, 122, inside=reduction, kernel=5),
        event("aten::add_", 150, 152, inside=optimizer, kernel=60),
        event("aten::mm", 300, 302, kernel=1000),  # an evaluation
    ]  # fmt: skip
    times = step_times(events, on_gpu=True)
    assert (times.steps, times.seconds) == (1, pytest.approx(200e-6))
    expected = {
        "matrix products": 44, "attention": 33, "fused operations": 8, "other operations": 0, "optimizer": 60,
        "communication": 5, "loader": 10, "between operations": 40,
    }  # fmt: skip
    assert {group: 1e6 * seconds for group, seconds in times.groups.items()} == pytest.approx(expected)
    assert [(o.name, o.group, o.calls) for o in times.largest[:2]] == [
        ("aten::add_", "optimizer", 1), ("aten::mm", "matrix products", 1),
    ]  # fmt: skip


def test_the_loader_costs_only_what_the_device_waits() -> None:
    step = event("step", 0, 100)
    events = [step, event("loader", 0, 50, inside=step), event("aten::mm", 50, 60, inside=step, kernel=80)]
    groups = step_times(events, on_gpu=True).groups
    assert (groups["loader"], groups["between operations"]) == (pytest.approx(20e-6), 0.0)
