"""A run that stops and is started again gives the numbers of a run that never stopped, bit for bit."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import finish
from tests.training.corpus import arguments, command, records
from tests.training.run import train

TIMES = {
    "tokens_per_second", "model_tflops_per_second", "mfu", "peak_memory_bytes",
    "step_seconds", "loader_wait_seconds", "evaluation_seconds",
    "slowest_rank", "slowest_rank_seconds", "median_rank_seconds",
}  # fmt: skip


def curve(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """All rows of a metrics file without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"architecture": "bert", "log_interval": 4, "eval_interval": 3, "lr_warmup_iters": 3},
        {"bf16": True},
        {"train_iters": None, "train_samples": 96, "rampup_batch_size": (4, 4, 32), "num_workers": 2},
    ],
    ids=["fp32", "windows and evaluation", "bf16", "ramp-up"],
)
def test_the_same_command_continues_bit_for_bit(corpus: Path, flags: dict[str, Any]) -> None:
    flags = {"train_iters": 11, "save_interval": 3, **flags}
    train(corpus, **flags, metrics_file=corpus / "whole.jsonl", save=corpus / "whole")
    for _ in range(4):
        train(corpus, **flags, save=corpus / "parts", exit_interval=5)
    assert curve(corpus) == curve(corpus, "whole.jsonl")
    assert len(records(corpus)) >= 2


def test_a_killed_run_goes_back_to_its_checkpoint(corpus: Path) -> None:
    """Rows of the metrics file after the checkpoint are done again, not repeated."""
    flags: dict[str, Any] = {"train_iters": 9, "save": corpus / "save", "save_interval": 4}
    train(corpus, **flags)
    whole = curve(corpus)
    (corpus / "save" / "latest_checkpointed_iteration.txt").write_text("4\n")
    train(corpus, **flags)
    assert curve(corpus) == whole


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_exits_cleanly(corpus: Path, processes: int) -> None:
    flags: dict[str, Any] = {"train_iters": 100_000, "save": corpus / "save"}
    process = command(arguments(corpus, **flags), processes=processes)
    deadline = time.monotonic() + 60
    while not (corpus / "metrics.jsonl").exists() or len(records(corpus)) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    if processes == 1:
        assert code == 0 and "stopped at step" in out, err
    steps = records(corpus)[-1]["step"]
    assert (corpus / "save" / "latest_checkpointed_iteration.txt").read_text().strip() == str(steps)
    train(corpus, **{**flags, "train_iters": steps + 2}, lr_decay_style="constant")
    assert records(corpus)[-1]["step"] == steps + 2


def test_finetune_takes_only_the_weights(corpus: Path) -> None:
    train(corpus, save=corpus / "first", train_iters=3)
    train(corpus, load=corpus / "first", finetune=True, metrics_file=corpus / "second.jsonl", train_iters=2)
    rows = records(corpus, name="second.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["consumed_samples"] == 8


def test_ckpt_step_chooses_the_checkpoint(corpus: Path) -> None:
    train(corpus, save=corpus / "first", train_iters=4, save_interval=2)
    train(corpus, load=corpus / "first", ckpt_step=2, train_iters=4, metrics_file=corpus / "again.jsonl")
    again, first = curve(corpus, "again.jsonl"), curve(corpus)
    assert [row["step"] for row in again] == [3, 4] and again == first[2:]


def test_without_the_optimizer_the_moments_start_afresh(corpus: Path) -> None:
    train(corpus, save=corpus / "first", train_iters=4, save_interval=2, no_save_optim=True)
    assert not list((corpus / "first").glob("*/optimizer-*"))
    train(corpus, load=corpus / "first", ckpt_step=2, train_iters=4, metrics_file=corpus / "again.jsonl")
    again, first = records(corpus, name="again.jsonl"), records(corpus)
    assert again[0]["mlm_loss"] == first[2]["mlm_loss"] and again[1]["mlm_loss"] != first[3]["mlm_loss"]
