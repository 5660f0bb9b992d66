"""Saving, finding and loading checkpoints, and every way in which that can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron import files
from megatron.checkpoint import direct, store
from megatron.checkpoint.store import (
    Pruning,
    check_writable,
    find_checkpoint,
    has_optimizer,
    load_tensors,
    read_config,
    read_train_state,
)
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from tests.checkpoint.small import SINGLE, no_space, pieces, save, weights
from tests.ranks import run_ranks

TRACKER = "latest_checkpointed_iteration.txt"
MODEL, OPTIMIZER = "model-00000.safetensors", "optimizer-00000.safetensors"
FILES = [MODEL, OPTIMIZER, "config.json", "train_state.json"]


def load(checkpoint: Path, into: dict[str, torch.Tensor], **more: Any) -> tuple[str, ...]:
    return load_tensors(checkpoint, "model", pieces(into), context=SINGLE, **more)


def zeros(like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def assert_loads(checkpoint: Path, iteration: int) -> None:
    into = zeros(weights(iteration))
    assert load(checkpoint, into) == ()
    for name, tensor in weights(iteration).items():
        assert torch.equal(into[name], tensor)
    assert read_train_state(checkpoint)["step"] == iteration


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    vocabulary = "[PAD]\n你\n".encode()
    path = save(tmp_path / "a" / "b", 12, files={"vocab.txt": vocabulary})
    assert find_checkpoint(tmp_path / "a" / "b", context=SINGLE) == path
    assert path.name == "iter_0000012"
    assert_loads(path, 12)
    moments = {"word.exp_avg": torch.zeros(7, 4)}
    assert has_optimizer(path)
    load_tensors(path, "optimizer", pieces(moments), context=SINGLE)
    assert torch.equal(moments["word.exp_avg"], weights(12)["word"] * 2)
    assert read_config(path) == {"model": {"hidden_size": 4}}
    assert read_train_state(path) == {"step": 12, "loss": 0.1 + 0.2}
    assert (path / "vocab.txt").read_bytes() == vocabulary


def test_names_that_may_lack_are_reported(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    into = {**zeros(weights(1)), "lm_head.bias": torch.full((7,), 3.0)}
    assert load(path, into, may_lack=("lm_head.",)) == ("lm_head.bias",)
    assert torch.equal(into["lm_head.bias"], torch.full((7,), 3.0))
    assert torch.equal(into["word"], weights(1)["word"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda into: into.update(extra=torch.zeros(2)), "missing: extra"),
        (lambda into: into.pop("bias"), "unexpected: bias"),
        (
            lambda into: into.update(word=torch.zeros(9, 4)),
            r"of another shape: word \[7, 4\] instead of \[9, 4\]",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_copied(tmp_path: Path, change: Any, message: str) -> None:
    path = save(tmp_path, 1)
    into = zeros(weights(1))
    change(into)
    with pytest.raises(UserError, match=message):
        load(path, into)
    assert all(tensor.abs().sum() == 0 for tensor in into.values())


def test_the_newest_or_the_asked_for_is_found(tmp_path: Path) -> None:
    first, second = save(tmp_path, 500), save(tmp_path, 1000)
    assert find_checkpoint(tmp_path, context=SINGLE) == second
    assert find_checkpoint(tmp_path, 500, context=SINGLE) == first
    assert find_checkpoint(first, context=SINGLE) == first
    assert find_checkpoint(tmp_path / "none", context=SINGLE) is None
    with pytest.raises(UserError, match=r"iter_0000700 does not exist.*step 1000"):
        find_checkpoint(tmp_path, 700, context=SINGLE)
    with pytest.raises(UserError, match="not that of step 1000"):
        find_checkpoint(first, 1000, context=SINGLE)


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert find_checkpoint(tmp_path, context=SINGLE) is None
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(tmp_path / "notes.txt", context=SINGLE)


@pytest.mark.parametrize("content", ["", "release", "12a", "-3", "9" * 5000, "\xff\xfe", "１２"])
def test_a_tracker_of_garbage_is_an_error_that_names_the_way_out(tmp_path: Path, content: str) -> None:
    save(tmp_path, 500)
    (tmp_path / TRACKER).write_text(content, encoding="latin-1" if "\xff" in content else "utf-8")
    with pytest.raises(UserError, match=rf"{TRACKER} holds .* step 500, write 500 into"):
        find_checkpoint(tmp_path, context=SINGLE)


def test_a_tracker_that_points_to_nothing_names_the_newest_whole_one(tmp_path: Path) -> None:
    save(tmp_path, 500)
    last = save(tmp_path, 1000)
    shutil.rmtree(last)
    with pytest.raises(UserError, match="iter_0001000 does not exist.*step 500"):
        find_checkpoint(tmp_path, context=SINGLE)
    (tmp_path / TRACKER).write_text("500\n")
    assert_loads(find_checkpoint(tmp_path, context=SINGLE), 500)


def test_without_a_tracker_the_newest_whole_one_counts(tmp_path: Path) -> None:
    save(tmp_path, 500)
    save(tmp_path, 10_000_000)
    damaged = save(tmp_path, 20_000_000)
    (damaged / "config.json").unlink()
    (tmp_path / TRACKER).unlink()
    assert_loads(find_checkpoint(tmp_path, context=SINGLE), 10_000_000)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / name).unlink()
    with pytest.raises(UserError, match=rf"iter_0000002/{name}.*step 1, write 1"):
        find_checkpoint(tmp_path, context=SINGLE)
    with pytest.raises(UserError, match=name):
        find_checkpoint(path, context=SINGLE)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("keep", [0, 0.5, -1])
def test_a_cut_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    path = save(tmp_path, 2)
    size = (path / name).stat().st_size
    # a manifest that lacks only its last newline is still whole
    os.truncate(path / name, size - 3 if keep == -1 else int(size * keep))
    with pytest.raises(UserError, match=name):
        find_checkpoint(tmp_path, context=SINGLE)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_anywhere_is_found_and_the_one_before_used(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = save(tmp_path, 1), save(tmp_path, 2)
    content = (path / name).read_bytes()
    for place in range(0, len(content), max(1, len(content) // 20)):
        (path / name).write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(UserError, match=f"{name} is damaged.*step 1, write 1"):
            find_checkpoint(tmp_path, context=SINGLE)
        assert find_checkpoint(tmp_path, context=SINGLE, fall_back=True) == before
        warning = capsys.readouterr().out
        assert warning.startswith("warning: ") and f"{path / name} is damaged" in warning and str(before) in warning
    (path / name).write_bytes(content)
    assert find_checkpoint(tmp_path, context=SINGLE) == path


def test_without_any_whole_one_falling_back_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        os.truncate(save(tmp_path, step) / MODEL, 10)
    with pytest.raises(UserError, match="iter_0000002.*iter_0000001.*no other whole checkpoint"):
        find_checkpoint(tmp_path, context=SINGLE, fall_back=True)


@pytest.mark.parametrize("content", ["", "garbage", "7"])
def test_a_damaged_tracker_falls_back_to_the_newest_whole_one(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (tmp_path / TRACKER).write_text(content)
    assert find_checkpoint(tmp_path, context=SINGLE, fall_back=True) == path


def test_old_ones_are_removed_when_the_new_one_is_there(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, pruning=Pruning(last=2, every=3))
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == [f"iter_000000{step}" for step in (3, 6, 7)]
    for step in (8, 9, 10):  # more than there are
        save(tmp_path, step, pruning=Pruning(last=6))
    assert len(list(tmp_path.glob("iter_*"))) == 6
    save(tmp_path, 11, pruning=Pruning(last=1))
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000011"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000011", TRACKER]


@pytest.mark.parametrize(
    "manifest", ["[]", "{", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"../a": {"bytes": 1, "sha256": ""}}}']
)
def test_a_hostile_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    path = save(tmp_path, 2)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="manifest.json"):
        find_checkpoint(tmp_path, context=SINGLE)


def test_a_checkpoint_without_optimizer_says_so(tmp_path: Path) -> None:
    path = save(tmp_path, 2, optimizer=[])
    assert not has_optimizer(path)
    with pytest.raises(UserError, match="holds no optimizer-"):
        load_tensors(path, "optimizer", [], context=SINGLE)


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    other = {name: tensor + 1 for name, tensor in weights(5).items()}
    path = save(tmp_path, 5, model=pieces(other))
    into = zeros(weights(5))
    load(path, into)
    assert torch.equal(into["word"], weights(5)["word"] + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000005", TRACKER]


class Killed(BaseException):
    """What stands for kill -9: no handler of ours runs on it."""


def test_a_kill_at_any_moment_of_a_save_leaves_the_newest_loadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at every call that changes the disk, in turn, for a new iteration and for the same one again."""
    calls = ("open", "pwrite", "ftruncate", "fsync", "rename", "replace", "mkdir")
    real = {name: getattr(os, name) for name in calls}
    real |= {"rmtree": shutil.rmtree}
    remaining = 0

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise Killed
            return real[name](*arguments, **options)

        return call

    for again in (False, True):
        stops = 0
        while True:
            folder = tmp_path / f"{again}-{stops}"
            save(folder, 1)
            if again:
                save(folder, 2)
            with monkeypatch.context() as patch:
                remaining = stops
                for name in calls:
                    patch.setattr(os, name, counted(name))
                patch.setattr(shutil, "rmtree", counted("rmtree"))
                try:
                    save(folder, 2)
                    killed = False
                except Killed:
                    killed = True
            found = find_checkpoint(folder, context=SINGLE)
            assert found is not None
            assert_loads(found, 2 if again or not killed else int(found.name[-1]))
            save(folder, 3)  # cleans up what the kill left
            assert not [path for path in folder.iterdir() if path.name.startswith(".iter")]
            assert_loads(find_checkpoint(folder, context=SINGLE), 3)
            if not killed:
                break
            stops += 1
        assert stops > 16


def test_a_wreck_of_a_killed_save_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    wreck = tmp_path / ".iter_0000002.tmp"
    shutil.copytree(path, wreck)  # even where it looks whole: its rename and the tracker did not happen
    assert find_checkpoint(tmp_path, context=SINGLE) == path
    assert wreck.exists()
    save(tmp_path, 2)
    assert not wreck.exists()


@pytest.mark.parametrize("when", range(7))
def test_a_full_disk_is_one_error_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    save(tmp_path, 1)
    calls = 0
    fsync = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == when + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written.*No space left on device.*free space there"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".iter*"))
    assert find_checkpoint(tmp_path, context=SINGLE).name in ("iter_0000001", "iter_0000002")
    assert_loads(save(tmp_path, 2), 2)


def test_an_unwritable_folder_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "folder", SINGLE)
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--save .*file/x cannot be written"):
        check_writable(tmp_path / "file" / "x", SINGLE)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        check_writable(tmp_path, SINGLE)


def _two_ranks_save(context: ParallelContext, folder: Path) -> list[str]:
    check_writable(folder, context)
    path = save(folder, 3, context)
    assert find_checkpoint(folder, context=context) == path
    into = zeros(weights(3))
    load_tensors(path, "model", pieces(into), context=context)
    assert torch.equal(into["word"], weights(3)["word"])
    return sorted(p.name for p in path.iterdir())


def test_ranks_without_a_piece_write_nothing(tmp_path: Path) -> None:
    one, two = run_ranks(Layout(data=2), _two_ranks_save, tmp_path / "save")
    assert one == two == sorted([*FILES, "manifest.json"])


def _two_ranks_fail(context: ParallelContext, folder: Path, action: str) -> None:
    if action == "find":
        find_checkpoint(folder, context=context)
    elif action == "load":
        load_tensors(folder / "iter_0000001", "model", [], context=context)
    elif action == "check":
        check_writable(folder / "iter_0000001" / "config.json" / "x", context)
    elif action == "publish":
        store.durable_file = files.durable_file if context.rank else no_space
        save(folder, 2, context)
    else:  # one rank cannot write its part
        direct._open = no_space if context.rank == 1 else direct._open
        save(folder, 2, context, model=pieces({f"of {context.rank}": torch.ones(3)}))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("find", "holds 'x'"), ("load", "another model"), ("check", "cannot be written"),
        ("publish", "No space left"), ("write", "No space left on device; free space there"),
    ],
)  # fmt: skip
def test_errors_are_the_same_on_all_ranks(tmp_path: Path, action: str, message: str) -> None:
    save(tmp_path, 1)
    (tmp_path / TRACKER).write_text("x")
    results = run_ranks(Layout(data=2), _two_ranks_fail, tmp_path, action)
    assert all(isinstance(result, UserError) and message in str(result) for result in results), results
    assert not list(tmp_path.glob(".iter*"))
    if action == "write":
        assert all("(rank 1)" in str(result) for result in results)
