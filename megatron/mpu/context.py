"""The processes of a run: who I am, which groups I am in, and every collective operation.

This is the only module that calls torch.distributed and reads torchrun's environment. A group of one process needs
no process group: its operations do nothing.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron.errors import UserError
from megatron.mpu.layout import Layout, layout_of_world

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that communicate along one axis. `rank` is this process's place in it."""

    name: str
    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = field(default=None, repr=False)

    def all_reduce_(self, tensor: torch.Tensor, operation: Literal["sum", "max", "min"] = "sum") -> torch.Tensor:
        """Reduce `tensor` over the group, in place; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=_OPERATIONS[operation], group=self.handle)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The equally shaped tensors of all members, concatenated along `dim` in order of rank."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.handle)
        return torch.cat(parts, dim)

    def broadcast_(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """Copy the tensor of member `source` to all, in place; returns it."""
        if self.size > 1:
            dist.broadcast(tensor, group=self.handle, group_src=source)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all members, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.handle)
        return values

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """The value of member `source`."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.handle, group_src=source)
        return box[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any member; the same answer on all."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce_(torch.tensor([float(flag)], device=device), "max").item())

    def barrier(self) -> None:
        """Wait until all members are here."""
        if self.size > 1:
            dist.barrier(group=self.handle)


def launched_processes() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """This process's place in the layout, its groups and its device. Handed to whatever depends on the layout."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    world: Group = field(default_factory=lambda: Group(name="world"))
    tensor: Group = field(default_factory=lambda: Group(name="tensor"))
    data: Group = field(default_factory=lambda: Group(name="data"))
    pipeline: Group = field(default_factory=lambda: Group(name="pipeline"))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def single(cls, device: str = "cpu") -> ParallelContext:
        """One process alone; torch.distributed is not used."""
        return cls(device=torch.device(device))

    @classmethod
    def from_environment(
        cls,
        *,
        tensor: int = 1,
        pipeline: int = 1,
        backend: Literal["auto", "gloo", "nccl"] = "auto",
        timeout_minutes: float = 10.0,
    ) -> ParallelContext:
        """The context of a process started by torchrun, or alone where torchrun did not start it.

        Raises `UserError` if the sizes do not divide the number of processes.
        """
        cuda = torch.cuda.is_available() and backend != "gloo"
        if backend == "nccl" and not cuda:
            raise UserError("--distributed-backend nccl needs a CUDA device; use gloo")
        world_size = launched_processes()
        layout = layout_of_world(world_size, tensor=tensor, pipeline=pipeline)
        if world_size == 1:
            return cls.single("cuda" if cuda else "cpu")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=timeout_minutes))
        return cls.of_process_group(layout, device)

    @classmethod
    def of_process_group(cls, layout: Layout, device: torch.device) -> ParallelContext:
        """The context over an initialised default process group of `layout.world_size` processes."""
        mesh = dist.init_device_mesh(
            device.type,
            (layout.pipeline, layout.data, layout.tensor),
            mesh_dim_names=("pipeline", "data", "tensor"),
        )

        def group(name: str, size: int) -> Group:
            handle = mesh.get_group(name)
            return Group(name=name, rank=dist.get_rank(handle), size=size, handle=handle)

        rank = dist.get_rank()
        return cls(
            layout=layout,
            rank=rank,
            world=Group(name="world", rank=rank, size=layout.world_size, handle=dist.group.WORLD),
            tensor=group("tensor", layout.tensor),
            data=group("data", layout.data),
            pipeline=group("pipeline", layout.pipeline),
            device=device,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that may fail on some ranks only: if it fails on any, it fails on all with the same message.

        Must not enclose collectives. Raises `UserError` with the message of the first rank that raised one.
        """
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if failure is not None and not isinstance(failure, UserError) and self.world.size == 1:
            raise failure
        message = None if failure is None else str(failure) if isinstance(failure, UserError) else repr(failure)
        for rank, other in enumerate(self.world.gather_objects(message)):
            if other is not None:
                if failure is not None and not isinstance(failure, UserError):
                    raise failure
                raise UserError(other if rank == self.rank or message else f"{other} (on rank {rank})") from None

    def close(self) -> None:
        """Leave the process groups."""
        if self.world.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
