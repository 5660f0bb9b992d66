"""Which process stands where: ranks and their coordinates. Pure arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the three axes. Ranks count tensor fastest, then data, then pipeline, as in Megatron-LM."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.pipeline * self.data * self.tensor

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """The (pipeline, data, tensor) coordinates of a rank."""
        return rank // (self.data * self.tensor), rank // self.tensor % self.data, rank % self.tensor

    def rank(self, pipeline: int, data: int, tensor: int) -> int:
        """The rank at given coordinates."""
        return (pipeline * self.data + data) * self.tensor + tensor

    def members(self, axis: Literal["tensor", "data", "pipeline"], rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` only along an axis, in order of that coordinate."""
        pipeline, data, tensor = self.coordinates(rank)
        if axis == "tensor":
            return tuple(self.rank(pipeline, data, i) for i in range(self.tensor))
        if axis == "data":
            return tuple(self.rank(pipeline, i, tensor) for i in range(self.data))
        return tuple(self.rank(i, data, tensor) for i in range(self.pipeline))


def layout_of_world(world_size: int, *, tensor: int, pipeline: int) -> Layout:
    """The layout of `world_size` processes; data parallelism is what tensor and pipeline leave.

    Raises `UserError` if they do not divide the world size.
    """
    if world_size % (tensor * pipeline):
        raise UserError(
            f"{world_size} processes cannot be divided into tensor-parallel size {tensor} x pipeline-parallel size "
            f"{pipeline}; start a multiple of {tensor * pipeline}"
        )
    return Layout(pipeline=pipeline, data=world_size // (tensor * pipeline), tensor=tensor)
