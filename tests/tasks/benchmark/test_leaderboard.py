"""The table of a benchmark from the metrics of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.tasks.benchmark.grid import Point
from megatron.tasks.benchmark.jobs import Job
from megatron.tasks.benchmark.leaderboard import Scored, Table, Trial, as_json, as_markdown, draw, row_of
from megatron.tasks.config import FinetuneConfig


def scored(task: str, lr: float, seed: int, **metrics: float) -> Scored:
    point = Point(global_batch_size=16, lr=lr, dropout=0.1)
    job = Job(name=f"{task} {lr} {seed}", config=FinetuneConfig(), identity={})
    trial = Trial(task=task, point=point, seed=seed, job=job)
    return Scored(trial=trial, metrics={"task": task, **metrics, "loss": 9.0, "step": 7})


@pytest.fixture
def table() -> Table:
    """Two seeds of three points, of which the last two tie; and a task without a majority."""
    afqmc = [
        scored("afqmc", lr, seed, accuracy=accuracy, majority_accuracy=0.69)
        for lr, accuracies in ((1e-5, (0.71, 0.72)), (2e-5, (0.70, 0.75)), (3e-5, (0.75, 0.74)))
        for seed, accuracy in enumerate(accuracies)
    ]
    cmrc = [scored("cmrc2018", 3e-5, 0, average=0.75, exact_match=0.65, f1=0.85)]
    rows = (row_of(afqmc), row_of(cmrc))
    return Table(rows=rows, checkpoint="model", unfinished=("afqmc 5e-5",), absent=("c3", "csl"))


def test_best_run_and_the_spread_of_its_point(table: Table) -> None:
    row = table.rows[0]
    assert (row.best.trial.point.lr, row.best.trial.seed) == (2e-5, 1)  # the first of those that tie
    assert row.mean == pytest.approx(0.725)
    assert row.std == pytest.approx(np.std([0.70, 0.75], ddof=1))
    assert (table.rows[1].best.metric, table.rows[1].std) == ("average", None)


def test_markdown_and_json_say_the_same(table: Table) -> None:
    text = as_markdown(table)
    assert "| afqmc | accuracy | 75.00 | 72.50 ± 3.54 (2) | 69.00 | 16 | 2e-05 | 0.1 | 1 | 6 |\n" in text
    assert "| cmrc2018 | average | 75.00 | 75.00 (1) | - | 16 | 3e-05 | 0.1 | 0 | 1 |\n" in text
    assert "| mean of 2 | | 70.00 |" in text
    assert "Left out, as their data is not there: c3, csl." in text
    assert "Runs without a result: afqmc 5e-5." in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {11}
    found: dict[str, Any] = json.loads(json.dumps(as_json(table)))
    assert found["average"] == pytest.approx(0.70)
    assert found["tasks"][1]["best"]["scores"] == {"average": 0.75, "exact_match": 0.65, "f1": 0.85}
    assert [trial["score"] for trial in found["tasks"][0]["trials"]] == [0.71, 0.72, 0.70, 0.75, 0.75, 0.74]


def test_the_plot_has_a_panel_a_task(table: Table, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(table.rows, tmp_path / "plot.svg")
    picture = (tmp_path / "plot.svg").read_text()
    for text in ("afqmc: accuracy (%)", "cmrc2018: average (%)", "batch 16, dropout 0.1", "majority"):
        assert f"<!-- {text} -->" in picture
