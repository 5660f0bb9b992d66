"""Processes that communicate along one axis, and every collective operation. Only this room calls torch.distributed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.errors import JobError
from megatron.mpu import shared_memory
from megatron.mpu.pulse import Operation
from megatron.mpu.spans import COMMUNICATION, span
from megatron.native import _C

Reduction = Literal["sum", "max", "min"]
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}

# Renamed in PyTorch 2.13.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass
class Traffic:
    """What a process has communicated: calls and bytes of its own tensors by (group, operation)."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, group: str, operation: str, size: int) -> None:
        """Count a call with `size` bytes."""
        key = group, operation
        self.calls[key] = self.calls.get(key, 0) + 1
        self.bytes[key] = self.bytes.get(key, 0) + size


@dataclass
class Activity:
    """What a process is doing with others: written by the thread that works, read by the one that watches.

    operation: the last one begun; entered: collectives begun, by group; teams: the first rank of each of these groups.
    waited: seconds inside of operations so far. asynchronous: operations run on a device, and it is not inside them
    that this process waits for others. phase: what the process is at, in words; phase_number counts the phases of
    start-up, phase_since is `time.monotonic()` of the beginning of the one under way, arrived says whether this process
    waits at its end. explain: finds out why an operation failed; may take seconds.
    """

    operation: Operation = field(default_factory=Operation)
    entered: dict[str, int] = field(default_factory=dict)
    teams: dict[str, int] = field(default_factory=dict)
    waited: float = 0.0
    asynchronous: bool = False
    phase: str = "start-up"
    phase_number: int = 0
    phase_since: float = math.inf
    arrived: bool = False
    explain: Callable[[str], str] = str

    def begin_phase(self, name: str) -> None:
        """Enter a phase of start-up."""
        self.arrived, self.phase_since, self.phase = False, time.monotonic(), name
        self.phase_number += 1


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An operation under way. Its tensors must not be touched before `wait`."""

    wait: Callable[[], None] = lambda: None


DONE = Pending()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that communicate along one axis. A group of one needs no process group: its operations do nothing.

    rank: this process's place in it; ranks: the members' ranks in the world, in order. shared: memory through which the
    members reduce where they are processes of one host without a GPU. through_host: tensors are copied to the CPU and
    back, for gloo between processes that share a GPU.
    """

    name: str
    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    handle: dist.ProcessGroup | None = field(default=None, repr=False)
    shared: _C.SharedGroup | None = field(default=None, repr=False)
    through_host: bool = False
    traffic: Traffic = field(default_factory=Traffic, repr=False)
    activity: Activity = field(default_factory=Activity, repr=False)

    def all_reduce_(self, tensor: Tensor, operation: Reduction = "sum") -> Tensor:
        """Reduce `tensor` over the group, in place; returns it."""
        self.start_all_reduce_(tensor, operation).wait()
        return tensor

    def start_all_reduce_(self, tensor: Tensor, operation: Reduction = "sum") -> Pending:
        """Begin to reduce `tensor` in place."""
        if self.size == 1:
            return DONE
        with self._inside("all-reduce", tensor):
            if self.shared is not None and shared_memory.all_reduce_(self.shared, tensor, operation):
                return DONE
            place = self._on_host(tensor)
            work = dist.all_reduce(place, _OPERATIONS[operation], self.handle, True)
            return self._pending("all-reduce", work, _copy_back(tensor, place))

    def start_reduce_scatter(self, output: Tensor, source: Tensor) -> Pending:
        """Begin to sum `source` over the group; member i gets part i of `size` equal parts in `output`.

        `output` may be this member's part of `source`.
        """
        if self.size == 1:
            return DONE if output.data_ptr() == source.data_ptr() else _copied(output, source)
        with self._inside("reduce-scatter", source):
            if self.shared is not None and shared_memory.reduce_scatter(self.shared, output, source):
                return DONE
            place = torch.empty_like(output, device="cpu") if self._is_gloo(source) else output  # gloo: not in place
            work = _reduce_scatter(place.view(-1), self._on_host(source).view(-1), group=self.handle, async_op=True)
            return self._pending("reduce-scatter", work, _copy_back(output, place))

    def start_all_gather(self, output: Tensor, source: Tensor) -> Pending:
        """Begin to collect the members' `source` tensors in a row in `output`, of which `source` may be one."""
        if self.size == 1:
            return DONE if output.data_ptr() == source.data_ptr() else _copied(output, source)
        with self._inside("all-gather", source):
            if self.shared is not None and shared_memory.all_gather_into(self.shared, output, source):
                return DONE
            place = self._room_on_host(output)
            own = source.to("cpu", copy=True) if self._is_gloo(source) else source  # gloo: not in place
            work = _all_gather(place.view(-1), own.view(-1), group=self.handle, async_op=True)
            return self._pending("all-gather", work, _copy_back(output, place))

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        """The equally shaped tensors of all members, concatenated along `dim` in order of rank."""
        if self.size == 1:
            return tensor
        output = tensor.new_empty((self.size, *tensor.shape))
        self.start_all_gather(output, tensor.contiguous()).wait()
        return output.flatten(0, 1) if dim == 0 else torch.cat(output.unbind(0), dim)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """The sum over the group of this member's rows, of `size` equal parts of dimension 0."""
        if self.size == 1:
            return tensor
        output = tensor.new_empty((tensor.shape[0] // self.size, *tensor.shape[1:]))
        self.start_reduce_scatter(output, tensor.contiguous()).wait()
        return output

    def start_send(self, tensor: Tensor, to: int) -> Pending:
        """Begin to send a tensor to member `to`. Pairs of members match sends and receives in order."""
        with self._inside("send", tensor, peer=to):
            place = self._on_host(tensor)
            work = dist.isend(place, group=self.handle, group_dst=to)
            return self._pending("send", work, lambda: place, peer=to)  # gloo does not keep it

    def start_receive(self, tensor: Tensor, source: int) -> Pending:
        """Begin to receive a tensor from member `source`."""
        with self._inside("receive", tensor, peer=source):
            place = self._room_on_host(tensor)
            work = dist.irecv(place, group=self.handle, group_src=source)
            return self._pending("receive", work, _copy_back(tensor, place), peer=source)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all members, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._inside("all-gather of objects"):
            dist.all_gather_object(values, value, group=self.handle)
        return values

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """The value of member `source`."""
        if self.size == 1:
            return value
        box = [value]
        with self._inside("broadcast of objects"):
            dist.broadcast_object_list(box, group=self.handle, group_src=source)
        return box[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any member; the same answer on all."""
        return self.any_of([flag], device)[0]

    def any_of(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """`any` of several flags at once."""
        if self.size == 1:
            return list(flags)
        asked = torch.tensor([float(flag) for flag in flags], device=device)
        return [flag > 0 for flag in self.all_reduce_(asked, "max").tolist()]

    def barrier(self) -> None:
        """Wait until all members are here."""
        if self.size > 1:
            with self._inside("barrier"):
                dist.barrier(group=self.handle)

    def _is_gloo(self, tensor: Tensor) -> bool:
        return self.through_host or tensor.device.type == "cpu"

    def _on_host(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu", copy=True) if self.through_host else tensor

    def _room_on_host(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu") if self.through_host else tensor

    @contextmanager
    def _inside(
        self, name: str, tensor: Tensor | None = None, *, peer: int | None = None, begun: int | None = None
    ) -> Iterator[None]:
        """Count an operation, say what this process waits for, and name it in errors.

        peer: the member at the other end of a transfer. begun: the number that a collective got when it was begun; a
        wait for it is not another one.
        """
        if tensor is not None:
            self.traffic.add(self.name, name, tensor.numel() * tensor.element_size())
        activity, awaited, number = self.activity, self.ranks, 0
        if peer is not None:
            awaited = awaited[self.rank], awaited[peer]
        else:
            number = activity.entered.get(self.name, 0) + 1 if begun is None else begun
            if begun is None:
                activity.entered[self.name] = number
                activity.teams[self.name] = awaited[0]
        activity.operation = Operation(name, self.name, awaited, number, True, time.monotonic())
        try:
            with span(COMMUNICATION, f"{name}, {self.name} group"):
                yield
        except RuntimeError as error:
            raise JobError(activity.explain(f"{activity.operation} failed: {_first_line(error)}")) from error
        ended = time.monotonic()
        activity.waited += ended - activity.operation.since
        activity.operation = Operation(name, self.name, awaited, number, False, ended)

    def _pending(
        self, name: str, work: Any, then: Callable[[], Any] | None = None, *, peer: int | None = None
    ) -> Pending:
        begun = None if peer is not None else self.activity.entered[self.name]

        def wait() -> None:
            with self._inside(name, peer=peer, begun=begun):
                work.wait()
            if then is not None:
                then()

        return Pending(wait=wait)


def _copy_back(tensor: Tensor, place: Tensor) -> Callable[[], Any]:
    return lambda: tensor if place is tensor else tensor.copy_(place)


def _copied(output: Tensor, source: Tensor) -> Pending:
    output.copy_(source)
    return DONE


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
