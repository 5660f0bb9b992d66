"""Tensors in a checkpoint: blocks of global tensors in safetensors files, one or a few of each rank.

    model-00003.safetensors      what rank 3 wrote of the weights
    model-00003.1.safetensors    second blocks of tensors of which it wrote several: a name occurs once in a file

The place of a block in its global tensor stands in the file's header as `torch.distributed.checkpoint` writes it in its
own safetensors storage, so that its `HuggingFaceStorageReader` reads these files. Any layout reads those of any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from megatron.checkpoint.direct import Written, write_hashed
from megatron.checkpoint.files import read_manifest, safetensors_header
from megatron.errors import UserError
from megatron.mpu.sharding import Piece, whole_piece

Kind = Literal["model", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a global tensor in a file."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A global tensor as a checkpoint holds it."""

    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[Block, ...]


def write_pieces(folder: Path, kind: Kind, pieces: Iterable[Piece], rank: int) -> dict[str, Written]:
    """Write what a rank holds; the files by name. Raises `OSError`."""
    levels: list[dict[str, Piece]] = []
    for piece in pieces:
        level = next((level for level in levels if piece.name not in level), None)
        if level is None:
            levels.append(level := {})
        level[piece.name] = piece
    written = {}
    for number, level in enumerate(levels):
        name = f"{kind}-{rank:05d}{f'.{number}' if number else ''}.safetensors"
        written[name] = write_hashed(folder / name, _parts([level[key] for key in sorted(level)]))
    return written


def _parts(pieces: Sequence[Piece]) -> Iterator[torch.Tensor]:
    places = {piece.name: {"saved_offsets": list(piece.offsets)} for piece in pieces}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
    shapes = {piece.name: (tuple(piece.tensor.shape), piece.tensor.dtype) for piece in pieces}
    yield torch.frombuffer(bytearray(safetensors_header(shapes, metadata)), dtype=torch.uint8)
    for piece in pieces:
        if piece.tensor.numel():
            yield piece.tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def files_of(checkpoint: Path, kind: Kind) -> list[str]:
    """The files with the tensors of a kind, those of older checkpoints (model.safetensors) as well."""
    names = read_manifest(checkpoint)
    return sorted(name for name in names if name.startswith((f"{kind}-", f"{kind}.")) and name.endswith(".safetensors"))


def read_index(checkpoint: Path, kind: Kind) -> dict[str, Stored]:
    """What a checkpoint holds of a kind, by global name. Raises `UserError` for what is not whole or contradicts."""
    blocks: dict[str, list[Block]] = {}
    dtypes: dict[str, str] = {}
    for file in files_of(checkpoint, kind):
        for name, dtype, block in _read_header(checkpoint / file):
            blocks.setdefault(name, []).append(block)
            if dtypes.setdefault(name, dtype) != dtype:
                raise UserError(f"{checkpoint / file}: {name} is {dtype}, but {dtypes[name]} in another file")
    index = {}
    for name, parts in sorted(blocks.items()):
        if len({len(block.sizes) for block in parts}) > 1:
            raise UserError(f"{checkpoint}: {name} has parts of unlike dimensions")
        ends = [[a + b for a, b in zip(block.offsets, block.sizes, strict=True)] for block in parts]
        shape = tuple(map(max, zip(*ends, strict=True)))
        if sum(math.prod(block.sizes) for block in parts) != math.prod(shape):
            raise UserError(f"{checkpoint}: parts of {name} are missing, or there twice; the checkpoint is not whole")
        index[name] = Stored(shape=shape, dtype=dtypes[name], blocks=tuple(parts))
    return index


def _read_header(path: Path) -> Iterator[tuple[str, str, Block]]:
    with _open(path) as file:
        metadata = file.metadata() or {}
        try:
            places = json.loads(metadata.get("DCP_SHARDING_INFO", "null"))
            for name in file.keys():  # noqa: SIM118 (no dict)
                part = file.get_slice(name)
                sizes = tuple(part.get_shape())
                offsets = tuple(places[name]["saved_offsets"]) if places is not None else (0,) * len(sizes)
                if len(offsets) != len(sizes) or not all(isinstance(n, int) and n >= 0 for n in offsets):
                    raise ValueError(name)
                yield name, part.get_dtype(), Block(file=path.name, offsets=offsets, sizes=sizes)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} has a damaged header: {error}") from None


def read_pieces(checkpoint: Path, index: Mapping[str, Stored], into: Iterable[Piece]) -> None:
    """Fill the pieces, of any dtype and device, from the blocks that overlap them. All names must be in the index."""
    with ExitStack() as stack, torch.no_grad():
        files: dict[str, safe_open] = {}
        for piece in into:
            for block in index[piece.name].blocks:
                low = [max(a, b) for a, b in zip(piece.offsets, block.offsets, strict=True)]
                high = [
                    min(a + m, b + n)
                    for a, m, b, n in zip(piece.offsets, piece.tensor.shape, block.offsets, block.sizes, strict=True)
                ]
                if any(a >= b for a, b in zip(low, high, strict=True)):
                    continue
                if block.file not in files:
                    files[block.file] = stack.enter_context(_open(checkpoint / block.file))
                source = _within(low, high, block.offsets)
                whole = all(part == slice(0, n) for part, n in zip(source, block.sizes, strict=True))
                file = files[block.file]
                values = file.get_tensor(piece.name) if whole else file.get_slice(piece.name)[source]
                piece.tensor[_within(low, high, piece.offsets)].copy_(values)


def read_whole(checkpoint: Path, index: Mapping[str, Stored], name: str) -> torch.Tensor:
    """A whole tensor, fp32, on the CPU."""
    tensor = torch.empty(index[name].shape)
    read_pieces(checkpoint, index, [whole_piece(name, tensor)])
    return tensor


def _within(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


def _open(path: Path) -> safe_open:
    """A safetensors file to read lazily; its header is checked against its size."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
