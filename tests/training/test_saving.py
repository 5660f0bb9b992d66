"""Checkpoints as a run goes: in the background, on request, by one job only, and after damage."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint import direct
from megatron.checkpoint.shards import files_of
from megatron.errors import UserError
from tests.checkpoint.weights import weights_of
from tests.commands import finish
from tests.training.corpus import arguments, command, records, write_corpus
from tests.training.run import train
from tests.training.test_resume import curve


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return weights_of(folder / f"iter_{step:07d}")


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.name[5:]) for path in folder.glob("iter_*"))


def wait_for_rows(folder: Path, process: subprocess.Popen[str], rows: int) -> None:
    """Until a run has recorded so many steps."""
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or len(records(folder)) < rows:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_in_the_background_is_what_waiting_saves(corpus: Path, processes: int) -> None:
    """Training goes on meanwhile, and changes nothing in it."""
    flags: dict[str, Any] = {"train_iters": 6, "save_interval": 2, "micro_batch_size": 2}
    train(corpus, **flags, save=corpus / "waiting")
    expected = curve(corpus)
    flags |= {"save": corpus / "background", "async_save": True, "metrics_file": corpus / "background.jsonl"}
    if processes > 1:
        flags |= {"pipeline_model_parallel_size": processes, "use_distributed_optimizer": True}
    code, out, err = finish(command(arguments(corpus, **flags), processes=processes))
    assert code == 0, err
    assert out.count("in the background") == 2 and out.count("saved ") == 3
    assert steps(corpus / "background") == [2, 4, 6]
    for step in (2, 4, 6):
        for name, tensor in weights(corpus / "waiting", step).items():
            torch.testing.assert_close(weights(corpus / "background", step)[name], tensor, rtol=1e-4, atol=1e-5)
    if processes == 1:
        assert curve(corpus, "background.jsonl") == expected


def test_a_background_save_that_fails_is_said_and_not_published(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, really_open = [], direct._open

    def full_once(path: Path) -> int:
        opened.append(path.parent.name)
        if path.parent.name == ".iter_0000002.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_open(path)

    monkeypatch.setattr(direct, "_open", full_once)
    train(corpus, train_iters=6, save_interval=2, async_save=True, save=corpus / "save")
    said = capsys.readouterr().out
    assert "warning: the checkpoint" in said and "No space left" in said and "training goes on" in said
    assert steps(corpus / "save") == [4, 6] and len(records(corpus)) == 6
    assert not list((corpus / "save").glob(".iter*"))


def test_sigusr1_saves_and_the_run_goes_on(corpus: Path) -> None:
    process = command(arguments(corpus, train_iters=100_000, save=corpus / "save"))
    try:
        wait_for_rows(corpus, process, 2)
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 60
        while not steps(corpus / "save"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        saved = steps(corpus / "save")[0]
        wait_for_rows(corpus, process, saved + 3)
        assert steps(corpus / "save") == [saved]
    finally:
        process.kill()


def test_a_second_job_is_refused_until_the_first_is_dead(corpus: Path) -> None:
    first = command(arguments(corpus, train_iters=100_000, save=corpus / "save"))
    try:
        wait_for_rows(corpus, first, 2)
        second = arguments(corpus, save=corpus / "save", metrics_file=corpus / "second.jsonl")
        code, _, err = finish(command(second))
        assert code == 2 and "is being written by another job (process " in err and "Traceback" not in err
        assert not (corpus / "second.jsonl").exists()
    finally:
        first.kill()  # leaves no time to clean up
        first.wait()
    code, _, err = finish(command(second))
    assert code == 0, err


def test_only_the_newest_and_the_marked_ones_stay(corpus: Path) -> None:
    train(corpus, train_iters=8, save_interval=1, save=corpus / "save", keep_last=2, keep_every=3)
    assert steps(corpus / "save") == [3, 6, 7, 8]


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_a_damaged_checkpoint_costs_its_steps_only(corpus: Path, kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags: dict[str, Any] = {"train_iters": 9, "save": corpus / "save", "save_interval": 4}
    train(corpus, **flags)
    whole = curve(corpus)
    damaged = corpus / "save" / "iter_0000009"
    shard = damaged / files_of(damaged, kind)[0]
    content = bytearray(shard.read_bytes())
    content[-20] ^= 4
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        train(corpus, **flags, no_checkpoint_fallback=True)
    capsys.readouterr()
    train(corpus, **flags)
    said = capsys.readouterr().out
    assert f"warning: {shard} is damaged" in said and "continuing from" in said and "at step 8" in said
    assert curve(corpus) == whole


def test_a_run_that_must_not_start_afresh_does_not(corpus: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in --save .*--exit-on-missing-checkpoint"):
        train(corpus, save=corpus / "save", exit_on_missing_checkpoint=True)
    train(corpus, save=corpus / "save", train_iters=2)
    train(corpus, save=corpus / "save", train_iters=2, exit_on_missing_checkpoint=True)


def test_another_batch_or_data_is_another_run(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags: dict[str, Any] = {"save": corpus / "save", "train_iters": 4}
    train(corpus, **flags, exit_interval=2)
    for change, message in (
        ({"global_batch_size": 16}, "--global-batch-size: 8 before, 16 now"),
        ({"seed": 5}, "--seed: 1234 before, 5 now"),
        ({"mask_prob": 0.3}, "--mask-prob: 0.15 before, 0.3 now"),
        ({"activation": "relu"}, "--activation: gelu before, relu now"),
    ):
        with pytest.raises(UserError, match=f"not the run of the checkpoint: {message}.*--accept-changes"):
            train(corpus, **flags, **change)
    write_corpus(corpus, seed=3)  # the same files, another text
    with pytest.raises(UserError, match="corpus 1 of train: .* before, .* now"):
        train(corpus, **flags)
    capsys.readouterr()
    train(corpus, **flags, accept_changes=True, global_batch_size=16, lr=2e-3)
    said = capsys.readouterr().out
    assert "changed since the checkpoint: --global-batch-size: 8 before, 16 now" in said
    assert "changed since the checkpoint: --lr: 0.001 before, 0.002 now" in said
    assert records(corpus)[-1]["consumed_samples"] == 4 * 16


def test_a_full_disk_ends_the_run_with_one_message_and_the_old_stays(corpus: Path) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    flags: dict[str, Any] = {"save": corpus / "save", "save_interval": 2}
    train(corpus, **flags, train_iters=6, exit_interval=2)
    process = command(arguments(corpus, **flags, train_iters=6), preexec_fn=no_large_files)
    code, _, err = finish(process)
    assert code == 2 and "cannot be written: " in err and "File too large" in err and "free space there" in err
    assert "Traceback" not in err and len(err.splitlines()) == 1
    assert steps(corpus / "save") == [2] and not list((corpus / "save").glob(".iter*"))
    train(corpus, **flags, train_iters=6)
    assert steps(corpus / "save") == [2, 4, 6]
