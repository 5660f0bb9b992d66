"""Which process stands where: ranks and their coordinates. Pure arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

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
