"""The schedule of a pipeline as a picture: what every stage computes when, its bubble, and the activations it holds.

With `--trace` the step that a run has really executed stands beside its plan.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.arguments import parse
from megatron.errors import UserError, main_guard
from megatron.files import write_file
from megatron.mpu.pipeline.drawing import draw_svg, draw_text, text_width
from megatron.mpu.pipeline.plan import Action, Kind, Plan, Schedule, make_plan
from megatron.mpu.pipeline.timeline import Timeline, simulate


@dataclass(frozen=True, kw_only=True)
class ShowScheduleConfig:
    """Draw a pipeline schedule, in units of a micro-batch's forward pass through one stage."""

    pipeline_model_parallel_size: int
    """Number of stages."""
    micro_batches: int
    """Micro-batches of a step."""
    pipeline_schedule: Schedule = "1f1b"
    """Order of the computations. zero-bubble puts off weight gradients; forward-only is evaluation."""
    num_virtual_stages_per_pipeline_rank: int = 1
    """Parts of the model on each stage (interleaved, forward-only)."""
    output: str | None = None
    """Picture to write, an .svg file."""
    trace: str | None = None
    """Folder with the pipeline_stage_<r>.jsonl files of a step that a run has executed, to draw beside the plan."""


def read_stage(path: Path, planned: tuple[Action, ...]) -> list[tuple[float, float, Action]]:
    """(start, finish, action) of the executed actions of a stage, in order of start; times in seconds of one clock.

    Raises `UserError` for a missing file, for a line that is not an action with its times, and where the actions are
    not those of the plan.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--trace {path}: {getattr(error, 'strerror', None) or error}") from None
    executed = []
    for number, line in enumerate(lines, start=1):
        try:
            executed.append(_parse_line(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, line {number}: not an executed action (a JSON object with kind, micro_batch, chunk, and "
                "start and finish in seconds)"
            ) from None
    executed.sort(key=lambda entry: entry[:2])
    expected, found = Counter(planned), Counter(action for _, _, action in executed)
    for action in (expected - found) + (found - expected):
        raise UserError(
            f"{path} is not a step of this plan: {action} is there {found[action]} times, not {expected[action]}; "
            "give the sizes and the schedule of the run"
        )
    return executed


def _parse_line(entry: dict[str, Any]) -> tuple[float, float, Action]:
    micro_batch, chunk, start, finish = (entry[name] for name in ("micro_batch", "chunk", "start", "finish"))
    whole = all(type(number) is int for number in (micro_batch, chunk))
    if not whole or not all(type(time) in (int, float) and math.isfinite(time) for time in (start, finish)):
        raise ValueError
    if finish < start:
        raise ValueError
    return start, finish, Action(kind=Kind(entry["kind"]), micro_batch=micro_batch, chunk=chunk)


def read_trace(folder: Path, plan: Plan) -> Timeline:
    """The executed step of a run whose plan this is."""
    stages = [read_stage(folder / f"pipeline_stage_{stage}.jsonl", planned) for stage, planned in enumerate(plan)]
    return Timeline(
        plan=tuple(tuple(action for _, _, action in stage) for stage in stages),
        start=tuple(tuple(start for start, _, _ in stage) for stage in stages),
        finish=tuple(tuple(finish for _, finish, _ in stage) for stage in stages),
    )


def plan_of(config: ShowScheduleConfig) -> Plan:
    """The plan that the options describe; raises `UserError` if there is none."""
    chunks = config.num_virtual_stages_per_pipeline_rank
    for name in ("pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank", "micro_batches"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")
    if chunks > 1 and config.pipeline_schedule in ("1f1b", "zero-bubble"):
        raise UserError(
            f"--pipeline-schedule {config.pipeline_schedule} has one part of the model on each stage, not "
            f"--num-virtual-stages-per-pipeline-rank {chunks}; --pipeline-schedule interleaved can have more"
        )
    return make_plan(
        config.pipeline_schedule,
        stages=config.pipeline_model_parallel_size,
        chunks=chunks,
        micro_batches=config.micro_batches,
    )


def summary(timeline: Timeline, chunks: int) -> list[str]:
    """Bubble and activations as text."""
    unit = "micro-batches" if chunks == 1 else f"micro-batches through one of {chunks} chunks"
    lines = [f"bubble: {timeline.bubble:.1%} of the time of work"]
    peaks = {"held for the backward": timeline.peak_live}
    if any(timeline.peak_waiting):
        peaks["kept for the weight gradient"] = timeline.peak_waiting
        peaks["both at a time"] = timeline.peak_held
    for name, peak in peaks.items():
        lines.append(f"most activations {name}, by stage: {' '.join(map(str, peak))} ({unit})")
    return lines


def main() -> None:
    config = parse(ShowScheduleConfig, prog="show_schedule.py", description="Draw the schedule of a pipeline.")
    chunks = config.num_virtual_stages_per_pipeline_rank
    if config.output is not None and Path(config.output).suffix != ".svg":
        raise UserError(f"--output {config.output}: the picture is an .svg file")
    plan = plan_of(config)
    planned = simulate(plan, stages=len(plan), chunks=chunks)
    panels = [(f"{config.pipeline_schedule}, in unit time", planned)]
    if config.trace is not None:
        executed = read_trace(Path(config.trace), plan)
        order = "in the order of the plan" if executed.plan == plan else "NOT in the order of the plan"
        panels.append((f"executed in {executed.makespan * 1000:.2f} ms, {order}", executed))
    width = text_width(planned, chunks)
    for title, timeline in panels:
        print("\n".join([f"{title}:", *draw_text(timeline, chunks=chunks, width=width), *summary(timeline, chunks)]))
        print()
    if config.output is not None:
        titles = [(f"{title}; bubble {timeline.bubble:.1%}", timeline) for title, timeline in panels]
        write_file(Path(config.output), draw_svg(titles, chunks=chunks).encode())
        print(config.output)


if __name__ == "__main__":
    main_guard(main)
