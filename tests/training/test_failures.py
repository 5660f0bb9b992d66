"""A job with a rank that dies, fails, hangs or does not come ends everywhere, with a message that names the rank."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import finish
from tests.ranks import run_script
from tests.training.corpus import arguments, command, records
from tests.training.run import train

SCRIPT = Path(__file__).with_name("failing.py")


def workers(agent: int) -> list[int]:
    """The processes that torchrun started, in order of rank."""
    return [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(agent)], text=True).split()]


def test_a_killed_rank_ends_the_job_and_nothing_is_saved(corpus: Path) -> None:
    flags = {"train_iters": 100_000, "micro_batch_size": 2, "save": corpus / "save"}
    process = command(arguments(corpus, **flags), processes=2)
    deadline = time.monotonic() + 60
    while not (corpus / "metrics.jsonl").exists() or len(records(corpus)) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    ranks = workers(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finish(process)
    assert code != 0 and time.monotonic() - killed < 60
    assert f"the job ends: rank 1 (host {os.uname().nodename}, process {ranks[1]}) died" in err, err
    assert not list((corpus / "save").glob("iter_*"))
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.parametrize(
    ("how", "flags", "expected"),
    [
        ("kill", {"tensor_model_parallel_size": 2}, ["the job ends: rank 1 (host", "died"]),
        ("raise", {}, ["the job ends: rank 1 (host", "ended: MemoryError: no room on the device"]),
        (
            "sleep",
            {"distributed_timeout_minutes": 0.05},
            [
                "the job ends: all-reduce in the data group (ranks 0, 1) has not ended within",
                "arrived: rank 0\n",
                "not there: rank 1 (host",
                "in step 3, at failing.py:",
            ],
        ),
        (
            "late",
            {"startup_timeout_minutes": 0.04},
            [
                "start-up: vocabulary was not finished by all ranks within 0.04 minutes",
                "not finished: rank 1 (host",
                "at failing.py:",
                "waiting for others: rank 0",
            ],
        ),
    ],
    ids=["killed, tensor parallel", "out of memory", "hung", "late in start-up"],
)
def test_without_torchrun_to_end_them_the_others_end(
    corpus: Path, how: str, flags: dict[str, float], expected: list[str]
) -> None:
    micro_batch_size = 4 if "tensor_model_parallel_size" in flags else 2
    argv = arguments(corpus, train_iters=100_000, micro_batch_size=micro_batch_size, **flags)
    (code, error), (other_code, other_error) = run_script(SCRIPT, [how, "1", *argv], 2, corpus, seconds=60)
    assert code == 1, error
    for part in expected:
        assert part in error, error
    if how == "raise":
        assert other_code == 1 and "Traceback" in other_error
    elif how != "kill":  # it is ended by its own watching thread
        assert other_code == 1 and expected[0] in other_error, other_error


@pytest.mark.parametrize("rendezvous", ["c10d", pytest.param("static", marks=pytest.mark.slow)])
def test_two_nodes_on_loopback_give_the_numbers_of_one(corpus: Path, rendezvous: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for node in range(2):
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        if rendezvous == "static":
            meeting = ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port]
        argv = arguments(corpus, train_iters=3, micro_batch_size=2, metrics_file=corpus / "nodes.jsonl")
        nodes.append(command(argv, launcher=["--nnodes", "2", *meeting, "--nproc-per-node", "1"]))
    (code, out, err), (other_code, other_out, other_err) = [finish(node) for node in nodes]
    assert code == 0 == other_code, err + other_err
    assert "layout: 2 processes" in out + other_out
    assert (out == "") != (other_out == "")  # only rank 0 speaks
    train(corpus, train_iters=3)
    for a, b in zip(records(corpus, name="nodes.jsonl"), records(corpus), strict=True):
        assert a["mlm_loss"] == pytest.approx(b["mlm_loss"], rel=1e-5)
