"""A job whose ranks are killed at any moment comes back by itself, and ends with the curve of one that was not."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import finish
from tests.training.corpus import arguments, command
from tests.training.run import train
from tests.training.test_failures import workers
from tests.training.test_resume import curve


def rows(folder: Path) -> int:
    """Lines of the metrics file so far."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_some_rank(folder: Path, job: subprocess.Popen[str], draw: random.Random) -> bool:
    """Wait for a new record, then a moment, and kill one rank; return when the job has noticed. Whether one lived."""
    before, deadline = rows(folder), time.monotonic() + 120
    while rows(folder) <= before and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(draw.random() * 0.4)
    ranks = workers(job.pid) if job.poll() is None else []
    if ranks:
        os.kill(draw.choice(ranks), signal.SIGKILL)
    while ranks and any(Path(f"/proc/{pid}").exists() for pid in ranks) and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return bool(ranks)


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments(corpus: Path, kills: int) -> None:
    steps, draw = 30 * kills, random.Random(kills)
    flags = {"train_iters": steps, "save_interval": 1, "keep_last": 3, "async_save": True, "micro_batch_size": 2}
    argv = arguments(corpus, **flags, use_distributed_optimizer=True, save=corpus / "save")
    launcher = ["--standalone", "--nproc-per-node=2", f"--max-restarts={kills + 1}"]
    job = command(argv, launcher=launcher)
    try:
        assert all(kill_some_rank(corpus, job, draw) for _ in range(kills))
    finally:
        code, _, err = finish(job, seconds=240)
    assert code == 0, err
    assert len(list((corpus / "save").glob("iter_*"))) == 3
    assert not list((corpus / "save").glob(".iter*"))
    found = curve(corpus)
    argv = arguments(
        corpus,
        **{**flags, "save": None, "async_save": None, "keep_last": None, "save_interval": None},
        use_distributed_optimizer=True,
        metrics_file=corpus / "whole.jsonl",
    )
    code, _, err = finish(command(argv, processes=2))
    assert code == 0, err
    assert found == curve(corpus, "whole.jsonl")


@pytest.mark.slow
def test_a_lost_node_leaves_the_rest_to_go_on(corpus: Path) -> None:
    """torchrun --nnodes 1:2: after the loss of a node the other continues alone, from the last checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"train_iters": 300, "save_interval": 5, "keep_last": 3, "micro_batch_size": 2}
    nodes = [
        command(
            arguments(corpus, **flags, save=corpus / "save"),
            launcher=[
                "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d",
                f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf=is_host={node == 0},last_call_timeout=5",
            ],
        )
        for node in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while rows(corpus) < 20:
        assert time.monotonic() < deadline and nodes[0].poll() is None
        time.sleep(0.1)
    for pid in (nodes[1].pid, *workers(nodes[1].pid)):
        os.kill(pid, signal.SIGKILL)
    code, out, err = finish(nodes[0], seconds=240)
    nodes[1].communicate()
    assert code == 0, err
    assert "layout: 2 processes" in out and "continuing" in out
    found = curve(corpus)
    train(corpus, **flags, metrics_file=corpus / "whole.jsonl")
    assert [row["mlm_loss"] for row in found] == pytest.approx(
        [row["mlm_loss"] for row in curve(corpus, "whole.jsonl")], rel=1e-4
    )
