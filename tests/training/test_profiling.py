"""`--profile`: traces and tables of the profiled steps, from whole command lines."""

from __future__ import annotations

import gzip
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, finish
from tests.ranks import run_script
from tests.training.corpus import arguments, command, records
from tests.training.run import train

GROUPS = (
    "matrix products", "attention", "fused operations", "other operations", "optimizer", "communication", "loader",
    "between operations",
)  # fmt: skip


def trace(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """The events of a rank's trace."""
    with gzip.open(folder / f"rank{rank}.trace.json.gz", "rt", encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def milliseconds(events: list[dict[str, Any]], name: str) -> list[float]:
    """Times of the events of a name."""
    return [event["dur"] / 1000 for event in events if event.get("ph") == "X" and event["name"] == name]


def table(folder: Path, rank: int = 0) -> dict[str, float]:
    """The groups of a rank's table, and the step: milliseconds a step."""
    text = (folder / f"rank{rank}.txt").read_text(encoding="utf-8")
    parts = [re.findall(r"^  (\S.*?) +(\d+\.\d\d) +(\d+\.\d)", part, re.MULTILINE) for part in text.split("largest")]
    whole = float(parts[0][-1][1])
    for _, ms, share in parts[0] + parts[1]:
        assert float(share) == pytest.approx(100 * float(ms) / whole, abs=0.2)
    times = [float(ms) for _, ms, _ in parts[1]]
    assert len(times) == 10 and times == sorted(times, reverse=True)
    return {name: float(ms) for name, ms, _ in parts[0]}


def assert_table_is_of_trace(folder: Path, rank: int, steps: int) -> None:
    rows, events = table(folder, rank), trace(folder, rank)
    durations = milliseconds(events, "step")
    assert len(durations) == steps
    assert rows["step, under the profiler"] == pytest.approx(sum(durations) / steps, abs=0.02)
    assert sum(rows[group] for group in GROUPS) == pytest.approx(rows["step, under the profiler"], abs=0.05)
    names = ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise")
    products = sum(sum(milliseconds(events, name)) for name in names) / steps
    assert rows["matrix products"] > 0 and rows["matrix products"] == pytest.approx(products, rel=0.5)
    assert all(rows[group] > 0 for group in ("attention", "fused operations", "optimizer"))


def test_two_ranks(corpus: Path) -> None:
    flags = {"train_iters": 5, "profile": corpus / "profile", "profile_step_start": 2, "profile_step_end": 4}
    argv = arguments(corpus, **flags, profile_ranks=(0, 1))
    for code, err in run_script(ROOT / "pretrain_bert.py", argv, 2, corpus):
        assert code == 0, err
    for rank in range(2):
        assert_table_is_of_trace(corpus / "profile", rank, 3)
        assert table(corpus / "profile", rank)["communication"] > 0
    names = {event["name"] for event in trace(corpus / "profile")}
    assert {"loader", "optimizer", "communication: all-reduce, data group"} <= names
    # What the profiler itself takes before and after its steps is in no record.
    spans = sum(milliseconds(trace(corpus / "profile"), "step"))
    assert sum(row["step_seconds"] for row in records(corpus)[1:4]) * 1000 > 0.99 * spans
    assert sorted(path.name for path in (corpus / "profile").iterdir()) == [
        f"rank{rank}.{kind}" for rank in range(2) for kind in ("trace.json.gz", "txt")
    ]


def test_a_stop_inside_of_the_window_writes_the_steps_that_were_done(corpus: Path) -> None:
    flags = {"train_iters": 100_000, "save": corpus / "save", "profile": corpus / "profile"}
    process = command(arguments(corpus, **flags, profile_step_start=2, profile_step_end=100_000))
    deadline = time.monotonic() + 60
    while not (corpus / "metrics.jsonl").exists() or len(records(corpus)) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert not list((corpus / "profile").iterdir())
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0, err
    steps = len(records(corpus))
    assert (corpus / "save" / f"iter_{steps:07d}").is_dir()
    assert_table_is_of_trace(corpus / "profile", 0, steps - 1)
    assert f"profile of rank 0, steps 2 to {steps}:" in out
    assert len(list((corpus / "profile").iterdir())) == 2


def test_options_that_do_not_fit_are_named(corpus: Path) -> None:
    script = ROOT / "pretrain_bert.py"

    def message(**flags: Any) -> str:
        ((code, err),) = run_script(script, arguments(corpus, **flags), 1, corpus)
        assert code == 2 and "Traceback" not in err
        return err

    assert "--profile-step-start needs --profile FOLDER" in message(profile_step_start=3)
    assert "--profile-step-start 13 must be at least 1 and not above" in message(
        profile=corpus / "p", profile_step_start=13
    )
    assert "--profile-ranks 1: the ranks of this run are 0 to 0" in message(profile=corpus / "p", profile_ranks=(1,))
    (corpus / "file").touch()
    assert f"--profile {corpus / 'file'} cannot be written" in message(profile=corpus / "file")


def test_a_run_that_ends_before_the_window_says_so(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(corpus, train_iters=2, profile=corpus / "profile")
    assert "profile: this run has done none of the steps 10 to 12; nothing is written" in capsys.readouterr().out
    assert not list((corpus / "profile").iterdir())
