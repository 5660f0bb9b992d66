"""Checkpoints on disk: save, find, read.

    SAVE/iter_0001000/model.safetensors       fp32 weights under global names, whole tensors
                      optimizer.safetensors   (left out of converted checkpoints)
                      config.json  train_state.json  vocab.txt ...
                      manifest.json           size and SHA-256 of each file; written last
    SAVE/latest_checkpointed_iteration.txt    number of the newest checkpoint

A checkpoint is written as SAVE/.iter_0001000.tmp, flushed, renamed, and then named in the tracker, so a kill at any
moment leaves the newest complete one loadable. Nothing in it depends on the layout that wrote it. Rank 0 alone looks
at the folder; its answer or error is that of all ranks, because file systems may show ranks different things.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from megatron.checkpoint.files import (
    MANIFEST,
    TensorWriter,
    publish,
    read_json,
    read_manifest,
    remove,
    verify_content,
    write_json,
    write_manifest,
)
from megatron.checkpoint.gather import gather_whole
from megatron.errors import UserError
from megatron.files import durable_file, flush_folder, replace_file
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import ShardedTensor, ShardSpec

TRACKER = "latest_checkpointed_iteration.txt"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
TRAIN_STATE = "train_state.json"

_FOLDER = re.compile(r"iter_(\d{7,})")

Result = TypeVar("Result")


def check_writable(folder: Path, context: ParallelContext, *, flag: str = "--save") -> None:
    """Make the save folder and a file in it, so that training does not start if it could not be saved.

    Raises `UserError` on all ranks if that fails.
    """

    def probe() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            test = folder / ".writable.tmp"
            with durable_file(test) as file:
                file.write(b"test")
            test.unlink()
        except OSError as error:
            raise UserError(f"{flag} {folder} cannot be written: {error.strerror}; choose another folder") from None

    _decide(context, probe)


def save_checkpoint(
    folder: Path,
    iteration: int,
    *,
    model: Mapping[str, ShardedTensor],
    optimizer: Mapping[str, ShardedTensor],
    config: Mapping[str, Any],
    train_state: Mapping[str, Any],
    extra_files: Mapping[str, Path],
    context: ParallelContext,
) -> Path:
    """Write a checkpoint and return its folder; called by all ranks. An empty `optimizer` writes none.

    model, optimizer: the same names on all ranks. extra_files: name in the checkpoint -> file to copy,
    e.g. {"vocab.txt": Path(...)}. A checkpoint of the same iteration is replaced.
    Raises `UserError` on all ranks if it cannot be written; the earlier checkpoints stay as they are.
    """
    target = folder / f"iter_{iteration:07d}"
    temporary = folder / f".{target.name}.tmp"

    def start() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for wreck in (*folder.glob(".iter_*.tmp"), *folder.glob(".iter_*.old")):  # left by a killed save
            remove(wreck)
        temporary.mkdir()

    def finish() -> None:
        names = [MODEL, CONFIG, TRAIN_STATE, *([OPTIMIZER] if optimizer else [])]
        write_json(temporary / CONFIG, config)
        write_json(temporary / TRAIN_STATE, train_state)
        for name, source in extra_files.items():
            with durable_file(temporary / name) as file:
                file.write(source.read_bytes())
        write_manifest(temporary, [*names, *extra_files])
        flush_folder(temporary)
        publish(temporary, target)
        replace_file(folder / TRACKER, f"{iteration}\n".encode())

    try:
        _decide(context, lambda: _writing(folder, start))
        _write_tensors(temporary / MODEL, model, context)
        if optimizer:
            _write_tensors(temporary / OPTIMIZER, optimizer, context)
        _decide(context, lambda: _writing(folder, finish))
    except UserError:
        if context.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def find_checkpoint(folder: Path, iteration: int | None = None, *, context: ParallelContext) -> Path | None:
    """The folder of the newest checkpoint in `folder`, or that of `iteration`; None if `folder` holds none at all.

    `folder` may also be the folder of one checkpoint (SAVE/iter_0001000). Names and sizes of its files are checked.
    Raises `UserError` on all ranks if the checkpoint asked for is missing or not whole, or the tracker is damaged.
    """
    return _decide(context, lambda: _find(folder, iteration))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration saved in a checkpoint. Raises `UserError` if it is missing or damaged."""
    return _read_small(checkpoint / CONFIG)


def read_train_state(checkpoint: Path) -> dict[str, Any]:
    """The position of the run saved in a checkpoint. Raises `UserError` if it is missing or damaged."""
    return _read_small(checkpoint / TRAIN_STATE)


def load_tensors(
    path: Path,
    into: Mapping[str, ShardedTensor],
    *,
    what: str,
    context: ParallelContext,
    may_lack: tuple[str, ...] = (),
    may_hold: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Copy CHECKPOINT/model.safetensors or optimizer.safetensors into local parts, of any dtype and layout.

    what: the file in words, for errors ("weights"). may_lack: beginnings of names that the file need not have.
    may_hold: beginnings of names that the file may have beyond `into`. Padding rows are left as they are.
    Returns the names in `into` that the file lacks.
    Raises `UserError` on all ranks if the file is damaged or belongs to another model; then nothing was copied.
    """
    _decide(context, lambda: verify_content(path))
    known: dict[str, tuple[int, ...]] = {}
    for stage in context.pipeline.gather_objects({name: part.shard.global_shape for name, part in into.items()}):
        known |= stage
    with context.together(), _open(path) as file:
        shapes = _shapes(file)
        _compare(path, shapes, known, what, may_lack, may_hold)
        with torch.no_grad():
            for name, part in into.items():
                if name in shapes:
                    part.shard.of_local(part.tensor).copy_(_read_rectangle(file, name, part.shard))
    return tuple(name for name in known if name not in shapes)


def weight_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the model's tensors. Raises `UserError` if their file is damaged."""
    verify_content(checkpoint / MODEL)
    with _open(checkpoint / MODEL) as file:
        return _shapes(file)


def read_weight(checkpoint: Path, name: str) -> torch.Tensor:
    """One whole tensor of the model, on the CPU."""
    with _open(checkpoint / MODEL) as file:
        return file.get_tensor(name)


def _shapes(file: safe_open) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)


def _open(path: Path) -> safe_open:
    """A safetensors file to read lazily; its header was checked against its size."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None


def _read_rectangle(file: safe_open, name: str, shard: ShardSpec) -> torch.Tensor:
    """Only the rows that this rank holds; nothing else is read from the disk."""
    if shard.dim is None:
        return file.get_tensor(name)
    rows = (slice(None),) * shard.dim + (slice(shard.start, shard.start + shard.size),)
    return file.get_slice(name)[rows]


def _compare(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, tuple[int, ...]],
    what: str,
    may_lack: tuple[str, ...],
    may_hold: tuple[str, ...],
) -> None:
    problems = {
        "missing": [name for name in known if name not in shapes and not name.startswith(may_lack)],
        "unexpected": [name for name in shapes if name not in known and not name.startswith(may_hold)],
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(shape)}"
            for name, shape in known.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    found = "; ".join(f"{kind}: {_first(names)}" for kind, names in problems.items() if names)
    if found:
        raise UserError(f"{path} holds the {what} of another model ({found}); give its shape, or another checkpoint")


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _write_tensors(path: Path, tensors: Mapping[str, ShardedTensor], context: ParallelContext) -> None:
    """Collect the tensors one by one on rank 0, which writes them in order of name."""
    shapes, wholes = gather_whole(tensors, context)

    def write() -> None:
        with durable_file(path) as file:
            writer = TensorWriter(file, shapes)
            for name, tensor in wholes:
                writer.write(name, tensor)

    with context.together():
        try:
            if context.is_main:
                _writing(path, write)
        finally:
            for _ in wholes:  # the other ranks of the group are in these collectives, also if writing failed
                pass


def _writing(path: Path, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be written: {error}; {_free_space(path)}") from None


def _free_space(path: Path) -> str:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return f"free space there: {shutil.disk_usage(existing).free / 2**30:.1f} GiB"


def _find(folder: Path, iteration: int | None) -> Path | None:
    if (folder / MANIFEST).is_file() or (folder.is_dir() and _FOLDER.fullmatch(folder.absolute().name)):
        if iteration is not None and folder.absolute().name != f"iter_{iteration:07d}":
            raise UserError(f"{folder} is one checkpoint, not that of step {iteration}; give the folder above it")
        read_manifest(folder)
        return folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a checkpoint is a folder")
    _finish_cut_renames(folder)
    known = sorted((path for path in folder.glob("iter_*") if _FOLDER.fullmatch(path.name)), key=_number)
    tracked = _read_tracker(folder, known)
    number = iteration if iteration is not None else tracked
    if number is None:
        return None
    path = folder / f"iter_{number:07d}"
    try:
        if path not in known:
            raise UserError(f"{path} does not exist")
        read_manifest(path)
    except UserError as error:
        raise UserError(f"{error}; {_others(folder, known, path)}") from None
    return path


def _finish_cut_renames(folder: Path) -> None:
    """Publish what a kill between the two renames of `publish` left: whole, but under its temporary name."""
    for temporary in folder.glob(".iter_*.tmp"):
        target = temporary.with_name(temporary.name[1 : -len(".tmp")])
        if not target.exists() and (folder / f".{target.name}.old").exists() and _is_whole(temporary):
            publish(temporary, target)


def _read_tracker(folder: Path, known: list[Path]) -> int | None:
    """The number in the tracker; where there is no tracker, that of the newest whole checkpoint."""
    tracker = folder / TRACKER
    try:
        text = tracker.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # killed between the rename of the first checkpoint and the tracker's, or not yet saved
        return max((_number(path) for path in known if _is_whole(path)), default=None)
    except (OSError, ValueError):
        text = "(unreadable)"
    if not re.fullmatch("[0-9]{1,12}", text):
        raise UserError(f"{tracker} holds {text[:40]!r} instead of a step; {_others(folder, known, None)}")
    return int(text)


def _others(folder: Path, known: list[Path], damaged: Path | None) -> str:
    whole = [_number(path) for path in known if path != damaged and _is_whole(path)]
    if not whole:
        return f"{folder} holds no other whole checkpoint"
    return f"to go on from the newest whole one, step {max(whole)}, write {max(whole)} into {folder / TRACKER}"


def _is_whole(path: Path) -> bool:
    try:
        read_manifest(path)
    except UserError:
        return False
    return True


def _number(path: Path) -> int:
    return int(path.name.removeprefix("iter_"))


def _read_small(path: Path) -> dict[str, Any]:
    verify_content(path)
    return read_json(path)


def _decide(context: ParallelContext, action: Callable[[], Result]) -> Result:
    """Rank 0 acts; its result or its error is that of all ranks."""
    result: Any = None
    with context.together():
        if context.is_main:
            try:
                result = action()
            except OSError as error:
                raise UserError(f"a checkpoint cannot be read or written: {error}") from None
    return context.world.broadcast_object(result)
