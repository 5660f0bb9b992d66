"""Checkpoints on disk: save, find, read.

    SAVE/iter_0001000/model-00000.safetensors       fp32 weights under global names: the blocks that rank 0 holds
                      model-00001.safetensors ...   those of rank 1 (`megatron.checkpoint.shards`)
                      optimizer-00000.safetensors   Adam's moments (left out of converted checkpoints)
                      config.json  train_state.json  vocab.txt ...
                      manifest.json                 size and SHA-256 of each file; written last
    SAVE/latest_checkpointed_iteration.txt          number of the newest checkpoint

A checkpoint is written as SAVE/.iter_0001000.tmp, flushed, renamed, and then named in the tracker, so a kill at any
moment leaves the newest complete one loadable. Every rank writes its own blocks; all else is done by rank 0 alone,
whose answer or error is that of all ranks, because file systems may show ranks different things.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.checkpoint.direct import Written
from megatron.checkpoint.files import (
    MANIFEST,
    publish,
    read_json,
    read_manifest,
    remove,
    sha256,
    verify_content,
    write_manifest,
)
from megatron.checkpoint.shards import Kind, Stored, files_of, read_index, read_pieces, write_pieces
from megatron.errors import UserError
from megatron.files import durable_file, flush_folder, replace_file
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece

TRACKER = "latest_checkpointed_iteration.txt"
CONFIG = "config.json"
TRAIN_STATE = "train_state.json"

_FOLDER = re.compile(r"iter_(\d{7,})")

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which older checkpoints stay. last: the newest so many, None for all; every: those of multiples of this step."""

    last: int | None = None
    every: int | None = None


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
    model: Sequence[Piece],
    optimizer: Sequence[Piece],
    files: Mapping[str, bytes],
    context: ParallelContext,
    pruning: Pruning = Pruning(),  # noqa: B008 (frozen)
) -> Path:
    """Write a checkpoint and return its folder; called by all ranks. An empty `optimizer` writes none.

    model, optimizer: together, the pieces of all ranks are every tensor once. files: the small ones, those of rank 0
    count. A checkpoint of the same iteration is replaced. Raises `UserError` on all ranks if it cannot be written; the
    earlier checkpoints stay as they are.
    """
    temporary = begin_save(folder, iteration, context)
    written, failure = write_own(temporary, model, optimizer, context.rank)
    return finish_save(temporary, written, failure, files=files, context=context, pruning=pruning)


def begin_save(folder: Path, iteration: int, context: ParallelContext) -> Path:
    """Make the folder that `write_own` fills and `finish_save` publishes; collective. Raises `UserError` as above."""
    temporary = folder / f".iter_{iteration:07d}.tmp"

    def start() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for wreck in (*folder.glob(".iter_*.tmp"), *folder.glob(".iter_*.old")):  # left by a killed save
            remove(wreck)
        temporary.mkdir()

    _decide(context, lambda: _writing(folder, start))
    return temporary


def write_own(
    temporary: Path, model: Sequence[Piece], optimizer: Sequence[Piece], rank: int
) -> tuple[dict[str, Written], str]:
    """Write this rank's pieces; not a collective, any thread. Returns the files, and why it failed or ""."""
    try:
        with ThreadPoolExecutor(2) as threads:  # two hashes at a time; one would be slower than a good disk
            writing = [
                threads.submit(write_pieces, temporary, "model", model, rank),
                threads.submit(write_pieces, temporary, "optimizer", optimizer, rank),
            ]
        return writing[0].result() | writing[1].result(), ""
    except OSError as error:
        return {}, f"the checkpoint {temporary} cannot be written: {error}; {_free_space(temporary)}"


def finish_save(
    temporary: Path,
    written: Mapping[str, Written],
    failure: str,
    *,
    files: Mapping[str, bytes],
    context: ParallelContext,
    pruning: Pruning,
) -> Path:
    """Publish what all ranks have written, then remove what `pruning` does not keep; collective.

    Raises `UserError` on all ranks if any could not write; then the fragment is gone.
    """
    folder, target = temporary.parent, temporary.with_name(temporary.name[1 : -len(".tmp")])
    parts = context.world.gather_objects((dict(written), failure))

    def finish() -> None:
        failures = {why: rank for rank, (_, why) in reversed(list(enumerate(parts))) if why}
        if failures:
            raise UserError("; ".join(f"{why} (rank {rank})" for why, rank in failures.items()))
        all_files = {name: entry for part, _ in parts for name, entry in part.items()}
        for name, content in files.items():
            with durable_file(temporary / name) as file:
                file.write(content)
            all_files[name] = Written(bytes=len(content), sha256=sha256(temporary / name))
        write_manifest(temporary, all_files)
        flush_folder(temporary)
        publish(temporary, target)
        replace_file(folder / TRACKER, f"{_number(target)}\n".encode())
        _prune(folder, target, pruning)

    try:
        _decide(context, lambda: _writing(folder, finish))
    except UserError:
        if context.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def json_bytes(value: Any) -> bytes:
    """A value as readable JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _prune(folder: Path, newest: Path, pruning: Pruning) -> None:
    """Remove old checkpoints, each by a rename first, so that a kill leaves none that is half gone."""
    if pruning.last is None:
        return
    older = [path for path in _known(folder) if _number(path) < _number(newest)]
    for path in older[: max(0, len(older) - (pruning.last - 1))]:
        if pruning.every is None or _number(path) % pruning.every:
            gone = path.with_name(f".{path.name}.old")
            with contextlib.suppress(OSError):  # the new one is safe; what cannot be removed is not worth a run
                path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)


def find_checkpoint(
    folder: Path,
    iteration: int | None = None,
    *,
    context: ParallelContext,
    fall_back: bool = False,
    warn: Callable[[str], None] = print,
) -> Path | None:
    """The folder of the newest checkpoint in `folder`, or that of `iteration`; None if `folder` holds none at all.

    `folder` may also be the folder of one checkpoint (SAVE/iter_0001000). All of its files are read and compared with
    their checksums, each by one rank. fall_back: take the newest whole one where newer ones are not, and `warn` on
    rank 0 with what is wrong with those. Raises `UserError` on all ranks if the checkpoint asked for, or every one, is
    missing or damaged.
    """
    candidates, said = _decide(context, lambda: _candidates(folder, iteration, fall_back))
    damages = list(said)
    for path in candidates:
        damage = _damage(path, context)
        if damage is None:
            for text in damages if context.is_main else ():
                warn(f"warning: {text}; continuing from {path}")
            return path
        damages.append(damage)
        if not fall_back:
            break
    if not damages:
        return None
    advice = _decide(context, lambda: _others(folder, candidates[0] if candidates else None))
    raise UserError("; ".join([*damages, advice]))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration saved in a checkpoint. Raises `UserError` if it is missing or damaged."""
    return _read_small(checkpoint / CONFIG)


def read_train_state(checkpoint: Path) -> dict[str, Any]:
    """The position of the run saved in a checkpoint. Raises `UserError` if it is missing or damaged."""
    return _read_small(checkpoint / TRAIN_STATE)


def has_optimizer(checkpoint: Path) -> bool:
    """Whether the optimizer's state was saved. Raises `UserError` if the manifest is damaged."""
    return bool(files_of(checkpoint, "optimizer"))


def load_tensors(
    checkpoint: Path,
    kind: Kind,
    into: Sequence[Piece],
    *,
    context: ParallelContext,
    may_lack: tuple[str, ...] = (),
    may_hold: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Copy the tensors of a checkpoint that `find_checkpoint` gave into pieces, of any dtype and layout; collective.

    may_lack: beginnings of names that the checkpoint need not have. may_hold: beginnings of names that it may have
    beyond `into`. Returns the names in `into` that it lacks. Raises `UserError` on all ranks if it belongs to another
    model; then nothing was copied.
    """
    known = {piece.name: piece.global_shape for piece in into}
    for group in (context.data, context.tensor, context.pipeline):  # with ZeRO a rank may hold nothing of a tensor
        known = {name: shape for part in group.gather_objects(known) for name, shape in part.items()}
    index: dict[str, Stored] = _decide(context, lambda: read_index(checkpoint, kind))
    if not index:
        raise UserError(f"{checkpoint} holds no {kind}-*.safetensors; it was converted, or saved without")
    _compare(checkpoint, kind, index, known, may_lack, may_hold)
    with context.together():
        read_pieces(checkpoint, index, [piece for piece in into if piece.name in index])
    return tuple(name for name in known if name not in index)


def _compare(
    checkpoint: Path,
    kind: Kind,
    index: Mapping[str, Stored],
    known: Mapping[str, tuple[int, ...]],
    may_lack: tuple[str, ...],
    may_hold: tuple[str, ...],
) -> None:
    problems = {
        "missing": [name for name in known if name not in index and not name.startswith(may_lack)],
        "unexpected": [name for name in index if name not in known and not name.startswith(may_hold)],
        "of another shape": [
            f"{name} {list(index[name].shape)} instead of {list(shape)}"
            for name, shape in known.items()
            if name in index and index[name].shape != shape
        ],
    }
    found = "; ".join(f"{what}: {_first(names)}" for what, names in problems.items() if names)
    if found:
        what = "weights" if kind == "model" else "optimizer state"
        raise UserError(f"{checkpoint} holds the {what} of another model ({found}); give its shape, or another one")


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _writing(path: Path, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be written: {error}; {_free_space(path)}") from None


def _free_space(path: Path) -> str:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return f"free space there: {shutil.disk_usage(existing).free / 2**30:.1f} GiB"


# ---- Which checkpoint ----------------------------------------------------------------------------------------------


def _candidates(folder: Path, iteration: int | None, fall_back: bool) -> tuple[list[Path], list[str]]:
    """The checkpoints that may be the one asked for, the best first, and what is wrong before any is looked at."""
    if (folder / MANIFEST).is_file() or (folder.is_dir() and _FOLDER.fullmatch(folder.absolute().name)):
        if iteration is not None and folder.absolute().name != f"iter_{iteration:07d}":
            raise UserError(f"{folder} is one checkpoint, not that of step {iteration}; give the folder above it")
        return [folder], []
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a checkpoint is a folder")
    _finish_cut_renames(folder)
    newest_first = _known(folder)[::-1]
    if iteration is not None:
        path = folder / f"iter_{iteration:07d}"
        return ([path], []) if path in newest_first else ([], [f"{path} does not exist"])
    tracker = folder / TRACKER
    try:
        text = tracker.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # killed between the rename of the first checkpoint and the tracker's, or not yet saved
        return [path for path in newest_first if _is_whole(path)], []
    except (OSError, ValueError):
        text = "(unreadable)"
    if not re.fullmatch("[0-9]{1,12}", text):
        return newest_first if fall_back else [], [f"{tracker} holds {text[:40]!r} instead of a step"]
    tracked = folder / f"iter_{int(text):07d}"
    older = [path for path in newest_first if _number(path) <= int(text)]
    return older if fall_back else [path for path in older if path == tracked], (
        [] if tracked in older else [f"{tracked} does not exist"]
    )


def _damage(path: Path, context: ParallelContext) -> str | None:
    """What is wrong with a checkpoint, None if nothing; collective: each file is read by one rank."""
    problems: list[str] = []
    try:
        names = sorted(_decide(context, lambda: read_manifest(path)))
    except UserError as error:
        return str(error)
    for name in names[context.rank :: context.world.size]:
        try:
            verify_content(path / name)
        except UserError as error:
            problems.append(str(error))
    found = [problem for part in context.world.gather_objects(problems) for problem in part]
    return "; ".join(found) or None


def _finish_cut_renames(folder: Path) -> None:
    """Publish what a kill between the two renames of `publish` left: whole, but under its temporary name."""
    for temporary in folder.glob(".iter_*.tmp"):
        target = temporary.with_name(temporary.name[1 : -len(".tmp")])
        if not target.exists() and (folder / f".{target.name}.old").exists() and _is_whole(temporary):
            publish(temporary, target)


def _known(folder: Path) -> list[Path]:
    """The folders of checkpoints, by number."""
    return sorted((path for path in folder.glob("iter_*") if _FOLDER.fullmatch(path.name)), key=_number)


def _others(folder: Path, damaged: Path | None) -> str:
    whole = [_number(path) for path in _known(folder) if path != damaged and _is_whole(path)]
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
