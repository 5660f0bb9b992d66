"""What checkpoints are made of: JSON, headers of safetensors, manifests, folders that appear whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.direct import Written
from megatron.errors import UserError
from megatron.files import durable_file, flush_folder

MANIFEST = "manifest.json"

# The dtypes of the safetensors format that occur here.
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, flushed to the disk."""
    with durable_file(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` if the file cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested without end
        raise UserError(f"{path} is not a JSON file; it is damaged") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; it is damaged")
    return value


def safetensors_header(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with; the tensors follow in the same order without gaps.

    8 bytes little-endian length, JSON (https://github.com/huggingface/safetensors).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (shape, dtype) in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start on a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, files: Mapping[str, Written]) -> None:
    """Write size and SHA-256 of files; the manifest ends a folder: without it the folder is a fragment."""
    write_json(folder / MANIFEST, {"files": {name: asdict(files[name]) for name in sorted(files)}})


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> {"bytes", "sha256"}.

    Raises `UserError` if the manifest is missing or damaged, or a file is missing or has another size.
    """
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{folder / MANIFEST} is damaged: it lists no files")
    for name, entry in files.items():
        path = folder / name
        whole = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        if not whole or Path(name).name != name:
            raise UserError(f"{folder / MANIFEST} is damaged at the entry of {name!r}")
        if not path.is_file():
            raise UserError(f"{path} is missing; the checkpoint is not whole")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}; it is cut or damaged")
    return files


def verify_content(path: Path) -> None:
    """Compare a file with the SHA-256 in the manifest beside it. Raises `UserError` if they differ."""
    entry = read_manifest(path.parent).get(path.name)
    if entry is None:
        raise UserError(f"{path.parent} holds no {path.name}; it may have been converted, or saved without it")
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if found != entry["sha256"]:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` if the block ends without an error, and disappears if not.

    Raises `UserError` if the target exists and is not an empty folder, or cannot be written. `overwrite` replaces a
    target that is an earlier export.
    """
    target = target.absolute()
    if target.is_file():
        raise UserError(f"{target} is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise UserError(f"{target} is not empty; choose another folder or give --overwrite")
        if not (target / "config.json").is_file():  # never wipe a folder that only shares the name
            raise UserError(f"{target} is not an earlier export (it has no config.json); choose another folder")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        flush_folder(temporary)
        publish(temporary, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, target: Path) -> None:
    """Rename a finished folder to its name; a folder of that name is replaced.

    A kill between the two renames leaves the finished folder under its temporary name.
    """
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder with what is in it, if it is there."""
    if folder.is_dir():
        shutil.rmtree(folder)
