"""Saving, finding and loading checkpoints, and every way in which that can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron import files
from megatron.checkpoint import store
from megatron.checkpoint.store import (
    ShardedTensor,
    check_writable,
    find_checkpoint,
    load_tensors,
    read_config,
    read_train_state,
    save_checkpoint,
)
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.sharding import ShardSpec
from tests.ranks import run_ranks

SINGLE = ParallelContext.single()
TRACKER = "latest_checkpointed_iteration.txt"


def whole(tensor: torch.Tensor) -> ShardedTensor:
    return ShardedTensor(tensor=tensor, shard=ShardSpec(global_shape=tuple(tensor.shape)))


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "word": torch.randn(7, 4, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "scale": torch.randn((), generator=generator),
    }


def save(folder: Path, iteration: int, context: ParallelContext = SINGLE, **more: Any) -> Path:
    arguments: dict[str, Any] = {
        "model": {name: whole(tensor) for name, tensor in weights(iteration).items()},
        "optimizer": {"word.exp_avg": whole(weights(iteration)["word"] * 2)},
        "config": {"model": {"hidden_size": 4}},
        "train_state": {"step": iteration, "loss": 0.1 + 0.2},
        "extra_files": {},
        "context": context,
    }
    return save_checkpoint(folder, iteration, **{**arguments, **more})


def load(checkpoint: Path, into: dict[str, ShardedTensor], **more: Any) -> tuple[str, ...]:
    return load_tensors(checkpoint / "model.safetensors", into, what="weights", context=SINGLE, **more)


def zeros(like: dict[str, torch.Tensor]) -> dict[str, ShardedTensor]:
    return {name: whole(torch.zeros_like(tensor)) for name, tensor in like.items()}


def assert_loads(checkpoint: Path, iteration: int) -> None:
    into = zeros(weights(iteration))
    assert load(checkpoint, into) == ()
    for name, tensor in weights(iteration).items():
        assert torch.equal(into[name].tensor, tensor)
    assert read_train_state(checkpoint)["step"] == iteration


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    vocabulary = tmp_path / "my words.txt"
    vocabulary.write_bytes("[PAD]\n你\n".encode())
    path = save(tmp_path / "a" / "b", 12, extra_files={"vocab.txt": vocabulary})
    assert find_checkpoint(tmp_path / "a" / "b", context=SINGLE) == path
    assert path.name == "iter_0000012"
    assert_loads(path, 12)
    moments = {"word.exp_avg": whole(torch.zeros(7, 4))}
    load_tensors(path / "optimizer.safetensors", moments, what="optimizer state", context=SINGLE)
    assert torch.equal(moments["word.exp_avg"].tensor, weights(12)["word"] * 2)
    assert read_config(path) == {"model": {"hidden_size": 4}}
    assert read_train_state(path) == {"step": 12, "loss": 0.1 + 0.2}
    assert (path / "vocab.txt").read_bytes() == vocabulary.read_bytes()


def test_other_readers_of_safetensors_agree(tmp_path: Path) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    tensors = {str(dtype): torch.arange(15).reshape(5, 3).to(dtype) for dtype in dtypes}
    tensors |= {"a view": torch.arange(12.0).reshape(3, 4).t(), "empty": torch.zeros(0, 3), "one": torch.tensor(5)}
    path = save(tmp_path, 1, model={name: whole(tensor) for name, tensor in tensors.items()})
    read = load_file(path / "model.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_only_the_rectangle_of_a_rank_is_loaded_and_padding_left(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    word = weights(1)["word"]
    rows = ShardedTensor(tensor=torch.full((4, 4), -1.0), shard=ShardSpec(global_shape=(7, 4), dim=0, start=4, size=3))
    columns = ShardedTensor(
        tensor=torch.zeros(7, 2, dtype=torch.bfloat16), shard=ShardSpec(global_shape=(7, 4), dim=1, start=2, size=2)
    )
    load(path, {"word": rows}, may_hold=("bias", "scale"))
    load(path, {"word": columns}, may_hold=("bias", "scale"))
    assert torch.equal(rows.tensor[:3], word[4:])
    assert torch.equal(rows.tensor[3], torch.full((4,), -1.0))
    assert torch.equal(columns.tensor, word[:, 2:].bfloat16())


def test_names_that_may_lack_are_reported(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    into = {**zeros(weights(1)), "lm_head.bias": whole(torch.full((7,), 3.0))}
    assert load(path, into, may_lack=("lm_head.",)) == ("lm_head.bias",)
    assert torch.equal(into["lm_head.bias"].tensor, torch.full((7,), 3.0))
    assert torch.equal(into["word"].tensor, weights(1)["word"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda into: into.update(extra=whole(torch.zeros(2))), "missing: extra"),
        (lambda into: into.pop("bias"), "unexpected: bias"),
        (
            lambda into: into.update(word=whole(torch.zeros(9, 4))),
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
    assert all(part.tensor.abs().sum() == 0 for part in into.values())


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


FILES = ["model.safetensors", "optimizer.safetensors", "config.json", "train_state.json"]


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


def test_a_flipped_byte_anywhere_is_found_on_reading(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    readers = {
        "model.safetensors": lambda: load(path, zeros(weights(2))),
        "optimizer.safetensors": lambda: load_tensors(
            path / "optimizer.safetensors", {"word.exp_avg": whole(torch.zeros(7, 4))}, what="x", context=SINGLE
        ),
        "config.json": lambda: read_config(path),
        "train_state.json": lambda: read_train_state(path),
    }
    for name, read in readers.items():
        content = (path / name).read_bytes()
        for place in range(0, len(content), max(1, len(content) // 20)):
            (path / name).write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
            with pytest.raises(UserError, match=f"{name} is damaged"):
                read()
        (path / name).write_bytes(content)
        read()


@pytest.mark.parametrize(
    "manifest", ["[]", "{", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"../a": {"bytes": 1, "sha256": ""}}}']
)
def test_a_hostile_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    path = save(tmp_path, 2)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="manifest.json"):
        find_checkpoint(tmp_path, context=SINGLE)


def test_a_checkpoint_without_optimizer_says_so(tmp_path: Path) -> None:
    path = save(tmp_path, 2, optimizer={})
    assert not (path / "optimizer.safetensors").exists()
    with pytest.raises(UserError, match="holds no optimizer.safetensors"):
        load_tensors(path / "optimizer.safetensors", {}, what="optimizer state", context=SINGLE)


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    other = {name: whole(tensor + 1) for name, tensor in weights(5).items()}
    path = save(tmp_path, 5, model=other)
    into = zeros(weights(5))
    load(path, into)
    assert torch.equal(into["word"].tensor, weights(5)["word"] + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000005", TRACKER]


class Killed(BaseException):
    """What stands for kill -9: no handler of ours runs on it."""


def test_a_kill_at_any_moment_of_a_save_leaves_the_newest_loadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at every call that changes the disk, in turn, for a new iteration and for the same one again."""
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir")}
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
                for name in ("fsync", "rename", "replace", "mkdir"):
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
        assert stops > 8


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


def test_a_vanished_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.txt"):
        save(tmp_path, 1, extra_files={"vocab.txt": tmp_path / "gone.txt"})
    assert find_checkpoint(tmp_path, context=SINGLE) is None


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
    mine = {name: whole(tensor + 100 * context.rank) for name, tensor in weights(3).items()}
    path = save(folder, 3, context, model=mine)
    assert find_checkpoint(folder, context=context) == path
    into = zeros(weights(3))
    load_tensors(path / "model.safetensors", into, what="weights", context=context)
    assert torch.equal(into["word"].tensor, weights(3)["word"])
    return sorted(p.name for p in path.iterdir())


def test_two_data_parallel_ranks_write_once(tmp_path: Path) -> None:
    one, two = run_ranks(Layout(data=2), _two_ranks_save, tmp_path / "save")
    assert one == two == sorted([*FILES, "manifest.json"])


def _two_ranks_fail(context: ParallelContext, folder: Path, action: str) -> None:
    if action == "find":
        find_checkpoint(folder, context=context)
    elif action == "load":
        load_tensors(folder / "iter_0000001" / "model.safetensors", {}, what="weights", context=context)
    elif action == "check":
        check_writable(folder / "iter_0000001" / "config.json" / "x", context)
    else:
        # every rank calls save; only rank 0 writes, and fails
        store.durable_file = files.durable_file if context.rank else _no_space
        save(folder, 2, context)


def _no_space(path: Path) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("action", "message"),
    [("find", "holds 'x'"), ("load", "another model"), ("check", "cannot be written"), ("save", "No space left")],
)
def test_errors_are_the_same_on_all_ranks(tmp_path: Path, action: str, message: str) -> None:
    save(tmp_path, 1)
    (tmp_path / TRACKER).write_text("x")
    results = run_ranks(Layout(data=2), _two_ranks_fail, tmp_path, action)
    assert all(isinstance(result, UserError) and message in str(result) for result in results), results


def _shards(context: ParallelContext) -> dict[str, ShardedTensor]:
    """Blocks of ceil(7 / 2) rows; the last one is padded with NaN."""
    rank = context.tensor.rank
    start, size = rank * 4, 4 - rank
    word, bias = weights(4)["word"], weights(4)["bias"]
    rows = torch.full((4, 4), float("nan"))
    rows[:size] = word[start : start + size]
    padded = torch.full((4,), float("nan"))
    padded[:size] = bias[start : start + size]
    return {
        "word": ShardedTensor(tensor=rows, shard=ShardSpec(global_shape=(7, 4), dim=0, start=start, size=size)),
        "columns": ShardedTensor(
            tensor=word[:, rank * 2 : rank * 2 + 2], shard=ShardSpec(global_shape=(7, 4), dim=1, start=rank * 2, size=2)
        ),
        "bias": ShardedTensor(tensor=padded, shard=ShardSpec(global_shape=(7,), dim=0, start=start, size=size)),
        "scale": whole(weights(4)["scale"]),
    }


def _tensor_parallel(context: ParallelContext, folder: Path, fail: bool) -> None:
    if fail and context.is_main:
        store.durable_file = _no_space
    save(folder, 4, context, model=_shards(context), optimizer={})
    into = {
        name: ShardedTensor(tensor=torch.zeros_like(part.tensor), shard=part.shard)
        for name, part in _shards(context).items()
    }
    load_tensors(folder / "iter_0000004" / "model.safetensors", into, what="weights", context=context)
    for name, part in _shards(context).items():
        assert torch.equal(part.shard.of_local(into[name].tensor), part.shard.of_local(part.tensor))


def test_tensor_parallel_ranks_write_whole_tensors(tmp_path: Path) -> None:
    run_ranks(Layout(data=2, tensor=2), _tensor_parallel, tmp_path, False)
    read = load_file(tmp_path / "iter_0000004" / "model.safetensors")
    expected = weights(4)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "word": expected["word"].tolist(),
        "columns": expected["word"].tolist(),
        "bias": expected["bias"].tolist(),
        "scale": expected["scale"].tolist(),
    }


def test_a_full_disk_with_tensor_parallel_ranks_does_not_hang(tmp_path: Path) -> None:
    results = run_ranks(Layout(data=1, tensor=2), _tensor_parallel, tmp_path, True, seconds=60)
    assert all(isinstance(result, UserError) and "No space left" in str(result) for result in results), results
