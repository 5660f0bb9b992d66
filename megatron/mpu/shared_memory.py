"""Collectives through shared memory between processes of one host, for tensors on the CPU.

Gloo moves them through loopback TCP, at a small part of the memory's speed. Results are the same bits on every member:
sums are in order of rank, bf16 is added in fp32 and rounded once.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron.native import _C

# Shared memory for a member. Larger is faster until it leaves the caches; containers often have 64 MB for everybody, of
# which a group takes an eighth at most.
MOST_SLOT_BYTES, LEAST_SLOT_BYTES = 2 << 20, 64 << 10

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2, torch.int64: 3}
_OPERATIONS = {"sum": 0, "max": 1, "min": 2}


def open_shared_group(
    handle: dist.ProcessGroup, *, timeout_seconds: float, slot_bytes: int | None = None
) -> _C.SharedGroup | None:
    """The members of a process group as a group that shares memory; None on all of them where that cannot be.

    Collective. It cannot be where members are on several hosts, in containers with memory of their own, or where
    /dev/shm lacks room: having one is a matter of speed only. `timeout_seconds`: how long an operation waits for a
    member before it raises `RuntimeError` with the member's rank in the group. `slot_bytes`: of shared memory for a
    member; by default what the room allows.
    """
    rank, size = dist.get_rank(handle), dist.get_world_size(handle)
    name, group = "", None
    if rank == 0:
        name = f"megatron-{os.getpid()}-{secrets.token_hex(8)}"
        slot_bytes = slot_bytes or _slot_bytes(size)
        group = _try_open(name, 0, size, slot_bytes, timeout_seconds)
    members = _gather((_host(), name if group is not None else "", slot_bytes), handle, size)
    host, name, slot_bytes = members[0]
    if not name or any(other != host for other, _, _ in members):
        return None
    if rank > 0:
        group = _try_open(name, rank, size, slot_bytes, timeout_seconds)
    return group if all(_gather(group is not None, handle, size)) else None


def supports(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be reduced here: on the CPU, contiguous, fp32, bf16, fp64 or int64."""
    return tensor.dtype in _DTYPES and _is_plain(tensor)


def all_reduce_(group: _C.SharedGroup, tensor: torch.Tensor, operation: Literal["sum", "max", "min"] = "sum") -> bool:
    """Reduce `tensor` over the group, in place; False, and nothing done, where `supports` denies it.

    A NaN of any member is a NaN of the result, for max and min too.
    """
    if not supports(tensor):
        return False
    group.all_reduce(tensor.data_ptr(), tensor.numel(), _DTYPES[tensor.dtype], _OPERATIONS[operation])
    return True


def reduce_scatter(
    group: _C.SharedGroup,
    output: torch.Tensor,
    input: torch.Tensor,
    operation: Literal["sum", "max", "min"] = "sum",
) -> bool:
    """Reduce `input` over the group and keep this member's part of the flat result in `output`.

    `input` has the elements of `output` once for each member; `output` may be this member's part of it. False, and
    nothing done, where `supports` denies one of them.
    """
    _check_parts("reduce_scatter", whole=input, part=output, size=group.size)
    if not supports(output) or not supports(input):
        return False
    codes = _DTYPES[output.dtype], _OPERATIONS[operation]
    group.reduce_scatter(input.data_ptr(), output.data_ptr(), output.numel(), *codes)
    return True


def all_gather_into(group: _C.SharedGroup, output: torch.Tensor, input: torch.Tensor) -> bool:
    """The `input` of all members, one after the other in order of rank, in `output`; any dtype.

    `input` may be this member's part of `output`. False, and nothing done, where one is not contiguous on the CPU.
    """
    _check_parts("all_gather_into", whole=output, part=input, size=group.size)
    if not _is_plain(output) or not _is_plain(input):
        return False
    group.all_gather(input.data_ptr(), output.data_ptr(), input.numel() * input.element_size())
    return True


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()


def _check_parts(name: str, *, whole: torch.Tensor, part: torch.Tensor, size: int) -> None:
    if whole.dtype != part.dtype or whole.numel() != size * part.numel():
        raise ValueError(
            f"{name}: {whole.dtype} {tuple(whole.shape)} is not {size} times {part.dtype} {tuple(part.shape)}"
        )


def _slot_bytes(size: int) -> int:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return LEAST_SLOT_BYTES
    return min(max(room.f_bavail * room.f_frsize // (8 * size), LEAST_SLOT_BYTES), MOST_SLOT_BYTES)


def _try_open(name: str, rank: int, size: int, slot_bytes: int, timeout_seconds: float) -> _C.SharedGroup | None:
    try:
        return _C.SharedGroup(name, rank, size, slot_bytes, rank == 0, timeout_seconds=timeout_seconds)
    except (RuntimeError, ValueError):
        return None


def _host() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = ""
    return socket.gethostname(), boot


def _gather(value: Any, handle: dist.ProcessGroup, size: int) -> list[Any]:
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value, group=handle)
    return values
