"""Weight files of a Hugging Face folder, whatever their format, as one mapping of names to tensors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron.checkpoint.files import read_json
from megatron.errors import UserError

_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True, kw_only=True)
class HubWeights:
    """Tensors of a folder, by name: shapes, dtypes as safetensors writes them, and a function that reads one.

    files: those that hold them.
    """

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    read: Callable[[str], torch.Tensor]


def open_weights(folder: Path) -> HubWeights:
    """The weights of a folder: model.safetensors or pytorch_model.bin, each whole or in parts with an index.

    LayerNorm parameters of checkpoints converted from TensorFlow (gamma, beta) get today's names. A .bin file is read
    with weights_only, so that it cannot run code.
    Raises `UserError` if there are none, or a file is missing, damaged or holds other things than tensors.
    """
    for name, open_files in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickles)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _renamed(open_files([folder / name]))
        if index.is_file():
            return _renamed(open_files(_parts(index)))
    raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin (nor their .index.json)")


def _parts(index: Path) -> list[Path]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{index} has no weight_map; it is damaged")
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if Path(name).name != name:  # a part lies beside its index, never elsewhere
            raise UserError(f"{index} names the file {name!r}, which is not in its folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing; {index.name} asks for it")
    return [index.parent / name for name in names]


def _open_safetensors(paths: list[Path]) -> HubWeights:
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    place: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    part = file.get_slice(name)
                    shapes[name], dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    place[name] = path
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None

    def read(name: str) -> torch.Tensor:
        with safe_open(place[name], framework="pt") as file:
            return file.get_tensor(name)

    return HubWeights(files=tuple(paths), shapes=shapes, dtypes=dtypes, read=read)


def _open_pickles(paths: list[Path]) -> HubWeights:
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read as plain tensors (weights_only): {reason}") from None
        if not isinstance(loaded, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
        ):
            raise UserError(f"{path} holds other things than named tensors")
        tensors |= loaded
    return HubWeights(
        files=tuple(paths),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()},
        read=tensors.__getitem__,
    )


def _renamed(weights: HubWeights) -> HubWeights:
    names = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): name
        for name in weights.shapes
    }
    return HubWeights(
        files=weights.files,
        shapes={new: weights.shapes[old] for new, old in names.items()},
        dtypes={new: weights.dtypes[old] for new, old in names.items()},
        read=lambda name: weights.read(names[name]),
    )
