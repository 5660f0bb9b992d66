"""Where the time of profiled steps goes: by group of operations, and the largest operations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from megatron.mpu.spans import COMMUNICATION, LOADER, OPTIMIZER, STEP

PRODUCTS, ATTENTION, FUSED = "matrix products", "attention", "fused operations"
OTHER, BETWEEN = "other operations", "between operations"
GROUPS = (PRODUCTS, ATTENTION, FUSED, OTHER, OPTIMIZER, COMMUNICATION, LOADER, BETWEEN)
MOST_OPERATIONS = 10

# The first that fits a name. Fused operations are those of ours, of our library or as functions of autograd (but those
# which only communicate), and of compilers.
_NAMES = (
    (ATTENTION, re.compile(r"(?i)attention|^megatron::softmax|^aten::(bmm|baddbmm|_softmax|_softmax_backward_data)$")),
    (PRODUCTS, re.compile(r"(?i)linear|^megatron::add_product_$|^aten::(mm|addmm_?|addmv|mv)$")),
    (FUSED, re.compile(r"fused|triton|^megatron::|^_(?!Reduce|Gather)[A-Z]")),
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """All calls of an operation. seconds, without the operations that it calls, and calls: a step."""

    name: str
    group: str
    seconds: float
    calls: float


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of a step, and of it by group, a mean over `steps`.

    On a CPU the groups add up to the step: between operations is Python, and what no operation names. On a GPU they are
    seconds of the device, also of operations side by side; loader and between operations are then what the device had
    nothing to do.
    """

    steps: int
    seconds: float
    groups: Mapping[str, float]
    largest: Sequence[Operation]


def step_times(events: Iterable[FunctionEvent], *, on_gpu: bool) -> StepTimes:
    """The times of what a profiler has seen of some steps, each in a span `STEP`."""
    calls = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    steps = [event for event in calls if event.name == STEP]
    whole, count = sum(step.time_range.elapsed_us() for step in steps), max(len(steps), 1)
    microseconds, numbers = defaultdict[tuple[str, str], float](float), defaultdict[tuple[str, str], int](int)
    for event in calls:
        span = _span_of(event)
        # Backwards on a GPU have a thread of their own, which has no spans of steps.
        if span is None and not (on_gpu and any(_begins_in(event, step) for step in steps)):
            continue
        kind = STEP if span is None else _kind(span.name)
        group = kind if kind != STEP else BETWEEN if event is span else _group_of(event.name)
        if on_gpu and kind != LOADER:
            # The device's part of a span is that of the operations in it.
            taken = 0.0 if event is span else sum(kernel.duration for kernel in event.kernels)
        else:
            taken = event.self_cpu_time_total
        microseconds[group, event.name] += taken
        numbers[group, event.name] += 1
    groups = dict.fromkeys(GROUPS, 0.0)
    for (group, _), taken in microseconds.items():
        groups[group] += taken
    if on_gpu:
        idle = max(0.0, whole - sum(taken for group, taken in groups.items() if group not in (LOADER, BETWEEN)))
        groups[LOADER] = min(groups[LOADER], idle)
        groups[BETWEEN] = idle - groups[LOADER]
    scale = 1e-6 / count
    named = sorted((key for key in microseconds if key[0] != BETWEEN), key=lambda key: -microseconds[key])
    return StepTimes(
        steps=len(steps),
        seconds=whole * scale,
        groups={group: taken * scale for group, taken in groups.items()},
        largest=[
            Operation(name=key[1], group=key[0], seconds=microseconds[key] * scale, calls=numbers[key] / count)
            for key in named[:MOST_OPERATIONS]
        ],
    )


def times_table(times: StepTimes) -> list[str]:
    """The times as text."""

    def line(name: str, seconds: float, end: str = "") -> str:
        return f"  {name:<44} {seconds * 1000:>10.2f} {100 * seconds / times.seconds:>9.1f}{end}"

    return [
        f"  {'':<44} {'ms a step':>10} {'per cent':>9}",
        *(line(group, times.groups[group]) for group in GROUPS),
        line("step, under the profiler", times.seconds),
        f"  {'largest operations':<44} {'ms a step':>10} {'per cent':>9} {'calls':>8}",
        *(line(f"{o.name[:43]}", o.seconds, f" {o.calls:>8.1f}  {o.group}") for o in times.largest),
    ]


def _span_of(event: FunctionEvent) -> FunctionEvent | None:
    """The innermost span around an event, or the event itself, of those in a step; None outside of steps."""
    found: FunctionEvent | None = None
    at: FunctionEvent | None = event
    while at is not None:
        if at.is_user_annotation and _kind(at.name) in (STEP, LOADER, OPTIMIZER, COMMUNICATION):
            found = found or at
            if at.name == STEP:
                return found
        at = at.cpu_parent
    return None


def _begins_in(event: FunctionEvent, step: FunctionEvent) -> bool:
    start: float = event.time_range.start
    return bool(step.time_range.start <= start <= step.time_range.end)


def _kind(name: str) -> str:
    return name.split(":")[0]


def _group_of(name: str) -> str:
    return next((group for group, pattern in _NAMES if pattern.search(name)), OTHER)
