"""How a parameter is divided among tensor-parallel ranks, and its first value.

Every parameter has one global name and one global shape. A rank holds a block of rows along one dimension, or the
whole tensor. Nothing outside `megatron.mpu` decides how a tensor is divided: all others read the `ShardSpec`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """The block of a global tensor that a rank holds.

    dim: the divided dimension, None if the rank holds all. start, size: the rows of `dim` held here; the local
    tensor may have more rows, which are padding and not part of the global tensor. partial: the rank's gradient is one
    of the summands over the tensor group, because the rank sees only its part of the sequence. tied: the first and
    the last pipeline stage both hold the tensor; their gradients are summed, and the first's counts and is saved.
    """

    global_shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    size: int = 0
    partial: bool = False
    tied: bool = False

    def of_global(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's block of a global tensor (a view)."""
        return tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.size)

    def of_local(self, tensor: torch.Tensor) -> torch.Tensor:
        """The local tensor without its padding rows (a view)."""
        return tensor if self.dim is None else tensor.narrow(self.dim, 0, self.size)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A block of a global tensor: where it begins in it, and its values (contiguous, any dtype and device)."""

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: torch.Tensor


def whole_piece(name: str, tensor: torch.Tensor) -> Piece:
    """A global tensor that is here as a whole."""
    return Piece(name=name, global_shape=tuple(tensor.shape), offsets=(0,) * tensor.dim(), tensor=tensor)


def parameter_pieces(named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[Piece]:
    """The blocks that the parameters of this rank are; writing into them changes the parameters."""
    return [
        piece
        for name, parameter in named
        for piece in pieces_of(name, shard_of(parameter), tuple(parameter.shape), parameter.data.reshape(-1))
    ]


def pieces_of(
    name: str, shard: ShardSpec, shape: tuple[int, ...], elements: torch.Tensor, start: int = 0
) -> Iterator[Piece]:
    """The blocks of the global tensor that a stretch of a local one covers, padding left out: at most 2 n - 1.

    shape: [n dimensions] of the local tensor; elements: flat, those of it from number `start` on.
    """
    stop = start + elements.numel()
    origin = [0] * len(shape)
    if shard.dim is not None:
        origin[shard.dim] = shard.start
        if shard.size < shape[shard.dim]:
            assert shard.dim == 0, "padding in the middle of rows"
            stop = min(stop, shard.size * math.prod(shape[1:]))
    for offsets, sizes, first in _blocks(shape, start, stop):
        yield Piece(
            name=name,
            global_shape=shard.global_shape,
            offsets=tuple(a + b for a, b in zip(origin, offsets, strict=True)),
            tensor=elements[first - start : first - start + math.prod(sizes)].view(sizes),
        )


def _blocks(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """(offsets, sizes, first element) of the blocks that elements start..stop-1 of a tensor are made of."""
    if start >= stop:
        return
    if not shape:
        yield (), (), start
        return
    row = math.prod(shape[1:])

    def of_row(number: int, begin: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
        base = number * row
        for offsets, sizes, first in _blocks(shape[1:], begin - base, end - base):
            yield (number, *offsets), (1, *sizes), first + base

    first, last = start // row, stop // row
    if start % row:
        yield from of_row(first, start, min(stop, (first + 1) * row))
        first += 1
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:]), first * row
    if first <= last and stop % row:
        yield from of_row(last, last * row, stop)


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Distribution of a parameter's first value: normal around `mean` with standard deviation `std`."""

    mean: float = 0.0
    std: float = 0.0


def new_parameter(
    global_shape: tuple[int, ...],
    initial: Initial,
    *,
    dim: int | None = None,
    rank: int = 0,
    size: int = 1,
    partial: bool = False,
    tied: bool = False,
) -> torch.nn.Parameter:
    """An uninitialised fp32 parameter with its `shard` and `initial` attached.

    dim: the dimension divided over `size` ranks (None: replicated), in blocks of ceil(n / size) rows; a block that
    reaches beyond the tensor is padded. partial, tied: see `ShardSpec`.
    """
    if dim is None or size == 1:
        shape, shard = global_shape, ShardSpec(global_shape=global_shape, partial=partial, tied=tied)
    else:
        rows = global_shape[dim]
        block = -(-rows // size)
        start = min(rank * block, rows)
        shard = ShardSpec(global_shape=global_shape, dim=dim, start=start, size=min(block, rows - start), tied=tied)
        shape = (*global_shape[:dim], block, *global_shape[dim + 1 :])
    parameter = torch.nn.Parameter(torch.empty(shape))
    parameter.shard = shard  # type: ignore[attr-defined]
    parameter.initial = initial  # type: ignore[attr-defined]
    return parameter


def shard_of(parameter: torch.nn.Parameter) -> ShardSpec:
    """Which block of its global tensor a parameter is."""
    return parameter.shard  # type: ignore[attr-defined]


def _initial_of(parameter: torch.nn.Parameter) -> Initial:
    return parameter.initial  # type: ignore[attr-defined]


def initialize(module: torch.nn.Module, seed: int) -> None:
    """Draw every parameter of a module as a function of (seed, global name), whatever the layout."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            shard, initial = shard_of(parameter), _initial_of(parameter)
            parameter.zero_()
            values = torch.full(shard.global_shape, initial.mean, device="cpu")
            if initial.std > 0:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
                values.normal_(initial.mean, initial.std, generator=generator)
            shard.of_local(parameter).copy_(shard.of_global(values))
