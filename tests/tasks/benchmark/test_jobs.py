"""Runs side by side: each once, on its devices, under its lock; those that fail stop no others."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.errors import UserError
from megatron.tasks.benchmark.jobs import Failure, Job, Slot, find_slots, read_metrics, run_jobs
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig

# Takes the place of finetune_clue.py: writes down when and where it ran, and a score that is its learning rate.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, rate = Path(flags["--output-dir"]), float(flags["--lr"])
note = [rate, os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("OMP_NUM_THREADS")]
with open(folder.parent / "runs.jsonl", "a") as file:
    file.write(json.dumps(["begin", *note]) + "\\n")
if rate > 10:
    time.sleep(60)
if rate < 1e-3:
    print("reading")
    sys.exit("data.json, line 3: no key 'label'")
time.sleep(0.05)
(folder / "dev_metrics.json").write_text(json.dumps({"task": "tnews", "accuracy": rate}))
with open(folder.parent / "runs.jsonl", "a") as file:
    file.write(json.dumps(["end", *note]) + "\\n")
"""
SLOTS = (Slot(devices=("3",), threads=2, processes=1), Slot(devices=("5",), threads=2, processes=1))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def job(folder: Path, rate: float, **identity: object) -> Job:
    config = FinetuneConfig(
        task=TaskConfig(task="tnews"),
        source=ModelSourceConfig(output_dir=str(folder / f"lr{rate:g}")),
        tuning=TuningConfig(lr=rate),
    )
    return Job(name=f"lr {rate:g}", config=config, identity={"lr": rate, **identity})


def run(jobs: Sequence[Job], script: Path, slots: Sequence[Slot] = SLOTS) -> tuple[list[Failure], dict[str, Any]]:
    """The failures, and the metrics of each job that was run."""
    found: dict[str, Any] = {}

    def finished(job: Job, metrics: dict[str, Any]) -> str:
        found[job.name] = metrics["accuracy"]
        return f"accuracy {metrics['accuracy']}"

    return run_jobs(jobs, slots, script, finished), found


def notes(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_each_runs_once_on_its_own_devices(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [job(tmp_path, 0.1 * number) for number in range(1, 6)]
    failures, found = run(jobs, script)
    assert failures == []
    assert found == {each.name: each.identity["lr"] for each in jobs}
    busy: set[str] = set()
    for what, _, device, threads in notes(tmp_path):
        assert (device in busy) == (what == "end")  # no two at a time on one
        (busy.add if what == "begin" else busy.discard)(device)
        assert device in ("3", "5")
        assert threads == "2"
    out = capsys.readouterr().out
    assert "5 runs, 0 of them finished earlier" in out
    assert "2 at a time: GPU 3 | GPU 5" in out
    assert "[5/5] lr " in out
    assert "ETA 0:00:00" in out


def test_finished_ones_are_not_run_again(tmp_path: Path, script: Path) -> None:
    run([job(tmp_path, 0.1), job(tmp_path, 0.2)], script)
    assert run([job(tmp_path, 0.1), job(tmp_path, 0.2), job(tmp_path, 0.3)], script) == ([], {"lr 0.3": 0.3})
    # of another configuration, and with results that are not whole or lack one
    assert run([job(tmp_path, 0.1, epochs=5), job(tmp_path, 0.2)], script) == ([], {"lr 0.1": 0.1})
    (tmp_path / "lr0.2" / "dev_metrics.json").write_text('{"task": "tnews", "accu')
    (tmp_path / "lr0.3" / "run.json").unlink()
    (tmp_path / "lr0.3" / "left.over").touch()
    _, found = run([job(tmp_path, 0.2), job(tmp_path, 0.3)], script)
    assert found == {"lr 0.2": 0.2, "lr 0.3": 0.3}
    assert not (tmp_path / "lr0.3" / "left.over").exists()


def test_a_failed_run_stops_no_others(tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures, found = run([job(tmp_path, 1e-4), job(tmp_path, 0.1), job(tmp_path, 0.2)], script)
    assert found == {"lr 0.1": 0.1, "lr 0.2": 0.2}
    (failure,) = failures
    log = tmp_path / "lr0.0001" / "log.txt"
    assert str(failure) == (
        f"lr 0.0001 ended with exit code 1; {log} ends with\n  reading\n  data.json, line 3: no key 'label'"
    )
    assert f"FAILED {failure}" in capsys.readouterr().out
    assert read_metrics(job(tmp_path, 1e-4)) is None


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that a killed command left behind: it holds the lock of lr 0.1, says so, and ends on a line of input."""
    holder = """
import fcntl, sys
with open(sys.argv[1], "ab") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / ".lr0.1.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("leaves_results", [True, False])
def test_a_run_that_was_left_behind_is_waited_for(
    tmp_path: Path,
    script: Path,
    orphan: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    leaves_results: bool,
) -> None:
    held = job(tmp_path, 0.1)

    def finish() -> None:
        if leaves_results:
            held.folder.mkdir()
            (held.folder / "run.json").write_text(json.dumps(held.identity))
            (held.folder / "dev_metrics.json").write_text('{"accuracy": 0.7}')
        orphan.communicate("\n")

    timer = threading.Timer(0.6, finish)
    timer.start()
    failures, found = run([held, job(tmp_path, 0.2)], script)
    timer.join()
    assert failures == []
    assert found == {"lr 0.1": 0.7 if leaves_results else 0.1, "lr 0.2": 0.2}
    assert "lr 0.1 is being run already" in capsys.readouterr().out


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As at a terminal: of tests started in the background a shell has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_runs(tmp_path: Path, script: Path, number: int) -> None:
    def interrupt() -> None:
        while not (tmp_path / "runs.jsonl").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run([job(tmp_path, 11.0)], script)
    assert signal.getsignal(signal.SIGTERM) is handler
    # its lock is free: the run is no more
    assert run([job(tmp_path, 0.1)], script) == ([], {"lr 0.1": 0.1})
    with open(tmp_path / ".lr11.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(jobs: int | None, processes: int) -> list[tuple[tuple[str, ...], int]]:
        return [(slot.devices, slot.threads) for slot in find_slots(jobs, processes)]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots(None, 1) == [((), 16)]
    assert slots(4, 2) == [((), 2)] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert slots(None, 1) == [((device,), 4) for device in "0123"]
    assert slots(2, 2) == [(("0", "1"), 4), (("2", "3"), 4)]
    assert [devices for devices, _ in slots(None, 3)] == [("0", "1", "2")]
    assert [devices for devices, _ in slots(6, 1)] == [(device,) for device in "012301"]  # GPUs are shared
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7,6,1")
    assert [devices for devices, _ in slots(None, 2)] == [("4", "GPU-7"), ("6", "1")]
    with pytest.raises(UserError, match="--processes 5: there are only 4 GPUs"):
        find_slots(None, 5)
