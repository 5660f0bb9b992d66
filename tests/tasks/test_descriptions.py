"""What a checkpoint says of its task: read back as it was, and named where it is damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import UserError
from megatron.tasks.descriptions import described_task, description
from megatron.tasks.kinds.prompts import with_prompt
from megatron.tasks.table import TASKS, find_task

WHERE = Path("best/config.json")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_is_read_back(task: Any) -> None:
    assert described_task(description(task, 100), WHERE) == (task, 100)
    if task.prompt is not None:
        prompted = with_prompt(task)
        assert described_task(description(prompted, 100), WHERE) == (prompted, 100)


def test_options_of_reading_are_those_of_the_run() -> None:
    task = find_task("squad2")
    assert task.reading is not None
    changed = dataclasses.replace(task.reading, doc_stride=7, null_score_diff_threshold=-1.5)
    (found, _) = described_task(description(dataclasses.replace(task, reading=changed), 100), WHERE)
    assert found.reading == changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squad", {"reading": {"doc_stride": "128"}}, r"damaged \(doc_stride '128'\)"),
        ("squad", {"reading": {"doc_stride": 0}}, r"damaged \(doc_stride 0\)"),
        ("squad", {"reading": [1]}, "the reading or the prompt of the task is damaged"),
        ("fewclue-tnews", {"prompt": "x"}, "the reading or the prompt of the task is damaged"),
        ("fewclue-tnews", {"prompt": {"pattern": "{0}[MASK]"}}, "damaged .*words"),
        ("fewclue-tnews", {"prompt": {"pattern": 3, "words": []}}, "the reading or the prompt of the task is damaged"),
        ("fewclue-tnews", {"prompt": {"pattern": "{0}[MASK]{1}", "words": ["书"] * 15}}, "with 15 words"),
        ("fewclue-tnews", {"prompt": {"pattern": "{0}[MASK]", "words": ["书"]}}, "with 1 words"),
        ("fewclue-tnews", {"prompt": {"pattern": "{0}", "words": ["书"] * 15}}, "with 15 words"),
    ],
)
def test_damaged_options_are_named(name: str, change: dict[str, Any], message: str) -> None:
    task = find_task(name) if "reading" in change else with_prompt(find_task(name))
    with pytest.raises(UserError, match=f"^best/config.json: .*{message}"):
        described_task({**description(task, 100), **change}, WHERE)
