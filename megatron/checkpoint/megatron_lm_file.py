"""Files that Megatron-LM wrote with torch.save, read without running anything that they name.

Beside the weights they hold objects of Megatron-LM, numpy and apex: options, generator states, loss scalers. None of
their classes is imported: `Inert` stands for all of them. A file that names any other class or function is refused.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron.errors import UserError

_STOOD_FOR = re.compile(
    r"(megatron|apex|amp_C|fp16|numpy|transformer_engine|signal|pathlib|enum|types|torch\.(_C\._nn|nn\.functional))\.[\w.]+"
)
_DEPTH = 8  # of the nested dictionaries; theirs have 4


class Inert:
    """An object of a class that is not imported. It keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, zip or older. Tensors are on the CPU, of a zip mapped into memory.

    Raises `UserError` if the file is damaged, or names a class or a function that is neither torch's own (of plain
    tensors) nor one that `Inert` may stand for; such a file is not unpickled.
    """
    stand_ins: list[Any] = [(argparse.Namespace, "argparse.Namespace")]
    try:
        zipped = zipfile.is_zipfile(path)
        stand_ins += [(Inert, name) for name in set(_named(path, zipped)) if _STOOD_FOR.fullmatch(name)]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named[1]}" if named else str(error).splitlines()[0]
        raise UserError(
            f"{path} is refused: {what}, which no checkpoint of Megatron-LM needs; nothing of it was run"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a whole file of torch.save: {reason}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no dictionary; it is not a checkpoint of Megatron-LM")
    return loaded


def named_tensors(nested: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of nested dictionaries, their keys joined by dots. Raises `UserError` if they nest too deep."""
    return dict(_flat(nested, path, "", 0))


def _flat(nested: dict[Any, Any], path: Path, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if depth == _DEPTH:
        raise UserError(f"{path} is not a checkpoint of Megatron-LM: its dictionaries nest too deep")
    for key, value in nested.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flat(value, path, f"{prefix}{key}.", depth + 1)


def _named(path: Path, zipped: bool) -> Iterator[str]:
    """The classes and functions that a file's pickles name; they are read, not run."""
    if zipped:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            yield from _named_by_pickle(io.BytesIO(archive.read(name)))
        return
    with open(path, "rb") as file:  # magic number, protocol, system, object
        for _ in range(4):
            yield from _named_by_pickle(file)


def _named_by_pickle(file: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
