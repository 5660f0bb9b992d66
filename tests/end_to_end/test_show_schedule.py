"""tools/show_schedule.py as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.commands import run

SVG = "{http://www.w3.org/2000/svg}"
show = partial(run, "tools/show_schedule.py")
SMALL = ("--pipeline-model-parallel-size", 2, "--micro-batches", 3)


def test_draws_a_plan_as_text() -> None:
    result = show(*SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "1f1b, in unit time:",
        "stage 0  |F0 F1 ......B0--- F2 B1--- ...B2--- |",
        "stage 1  |...F0 B0--- F1 B1--- F2 B2--- ......|",
        "bubble: 33.3% of the time of work",
        "most activations held for the backward, by stage: 2 1 (micro-batches)",
        "",
    ]


def test_zero_bubble_says_what_waits_for_weight_gradients() -> None:
    result = show(*SMALL, "--pipeline-schedule", "zero-bubble")
    assert "stage 1  |...F0 I0 F1 I1 W0 F2 I2 W1 W2 |" in result.stdout
    assert "bubble: 11.1%" in result.stdout
    assert "most activations kept for the weight gradient, by stage: 1 2 (micro-batches)" in result.stdout
    assert "most activations both at a time, by stage: 2 2 (micro-batches)" in result.stdout


def rows_of(picture: Path) -> list[str]:
    """The tooltips of a picture: one for each action drawn."""
    root = ElementTree.parse(picture).getroot()
    assert root.tag == f"{SVG}svg"
    return [title.text or "" for title in root.iter(f"{SVG}title")]


def test_draws_a_plan_as_picture(tmp_path: Path) -> None:
    interleaved = ("--pipeline-schedule", "interleaved", "--num-virtual-stages-per-pipeline-rank", 2)
    result = show(*SMALL, *interleaved, "--output", tmp_path / "pictures" / "plan.svg")
    assert result.returncode == 0, result.stderr
    tooltips = rows_of(tmp_path / "pictures" / "plan.svg")
    assert len(tooltips) == 2 * 3 * 2 * 2  # stages, micro-batches, chunks, forward and backward
    assert tooltips[0] == "forward of micro-batch 0, chunk 0: 0 to 0.5"


def write_trace(folder: Path, change: Callable[[dict[str, Any]], None] = lambda entry: None) -> None:
    """A step of two stages and three micro-batches in 1F1B: forwards take 10 ms, backwards 20 ms, messages 5 ms."""
    first = [("F0", 0, 10), ("F1", 10, 20), ("B0", 50, 70), ("F2", 70, 80), ("B1", 85, 105), ("B2", 125, 145)]
    last = [("F0", 15, 25), ("B0", 25, 45), ("F1", 45, 55), ("B1", 55, 75), ("F2", 85, 95), ("B2", 95, 115)]
    for stage, actions in enumerate((first, last)):
        lines = []
        for name, start, finish in actions:
            kind = "forward" if name[0] == "F" else "backward"
            entry = {"kind": kind, "micro_batch": int(name[1]), "chunk": 0}
            entry |= {"start": 7.0 + start / 1000, "finish": 7.0 + finish / 1000}
            change(entry)
            lines.append(json.dumps(entry) + "\n")
        (folder / f"pipeline_stage_{stage}.jsonl").write_text("".join(lines))


def test_draws_the_executed_step_beside_the_plan(tmp_path: Path) -> None:
    write_trace(tmp_path)
    result = show(*SMALL, "--trace", tmp_path, "--output", tmp_path / "both.svg")
    assert result.returncode == 0, result.stderr
    plan, executed = result.stdout.split("\n\n")[:2]
    assert "bubble: 33.3%" in plan
    assert "executed in 145.00 ms, in the order of the plan:" in executed
    assert "bubble: 61.1%" in executed  # 145 ms for 90 ms of work
    assert "by stage: 2 1 (micro-batches)" in executed
    assert [len(line) for line in executed.splitlines()[1:3]] == [len(line) for line in plan.splitlines()[1:3]]
    assert len(rows_of(tmp_path / "both.svg")) == 2 * 12
    drawn = [rect for rect in ElementTree.parse(tmp_path / "both.svg").iter(f"{SVG}rect") if len(rect)]
    left = [float(rect.attrib["x"]) for rect in drawn]
    right = [float(rect.attrib["x"]) + float(rect.attrib["width"]) for rect in drawn]
    assert min(left[12:]) == min(left[:12])  # both over the whole width
    assert max(right[12:]) == pytest.approx(max(right[:12]), abs=0.05)


def test_another_order_than_planned_is_said_and_counted(tmp_path: Path) -> None:
    def all_forwards_first(entry: dict[str, Any]) -> None:
        if entry["kind"] == "forward":
            entry["start"] -= 1.0
            entry["finish"] -= 1.0

    write_trace(tmp_path, all_forwards_first)
    result = show(*SMALL, "--trace", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "NOT in the order of the plan" in result.stdout
    assert "by stage: 3 3 (micro-batches)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pipeline-schedule", "gpipe"), "invalid choice"),
        (("--num-virtual-stages-per-pipeline-rank", 2), "--pipeline-schedule interleaved can have more"),
        (("--micro-batches", 0), "--micro-batches must be at least 1, not 0"),
        (("--pipeline-model-parallel-size", -1), "--pipeline-model-parallel-size must be at least 1, not -1"),
        (("--output", "plan.png"), "--output plan.png: the picture is an .svg file"),
        (("--trace", "/nowhere"), "/nowhere/pipeline_stage_0.jsonl: No such file"),
    ],
)
def test_mistakes_end_with_one_message(arguments: tuple[object, ...], message: str) -> None:
    result = show(*SMALL, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sideways"}, "pipeline_stage_0.jsonl, line 1: not an executed action"),
        ({"start": float("nan")}, "line 1: not an executed action"),
        ({"finish": 0.0}, "line 1: not an executed action"),
        ({"chunk": "0"}, "line 1: not an executed action"),
        ({"micro_batch": True}, "line 1: not an executed action"),
        ({"chunk": 1}, "not a step of this plan: forward of micro-batch 0, chunk 0 is there 0 times, not 1"),
    ],
)
def test_traces_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_trace(tmp_path, lambda entry: entry.update(change))
    result = show(*SMALL, "--trace", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_trace_of_another_plan_is_refused(tmp_path: Path) -> None:
    write_trace(tmp_path)
    result = show("--pipeline-model-parallel-size", 2, "--micro-batches", 4, "--trace", tmp_path)
    assert result.returncode == 2
    assert "forward of micro-batch 3, chunk 0 is there 0 times, not 1; give the sizes" in result.stderr
