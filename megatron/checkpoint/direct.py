"""A file written past the page cache and hashed on the way, at the speed of the disk.

Three things happen at a time: the next chunk is collected, one is hashed, one is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

_CHUNK, _BUFFERS, _BLOCK = 16 << 20, 3, 4096  # bytes; direct writes need whole blocks, and memory on a block's border


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def write_hashed(path: Path, parts: Iterable[torch.Tensor]) -> Written:
    """Write the parts (flat uint8, any device) one after the other and flush them to the disk. Raises `OSError`."""
    handle = _open(path)
    digest = hashlib.sha256()
    memory = [mmap.mmap(-1, _CHUNK) for _ in range(_BUFFERS)]
    buffers = [torch.frombuffer(chunk, dtype=torch.uint8) for chunk in memory]
    busy: list[list[Future[None]]] = [[] for _ in buffers]
    number = used = total = 0
    with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as writer:

        def submit() -> None:
            nonlocal number, used, total
            view, at = memoryview(memory[number]), total
            total += used
            busy[number] = [
                hasher.submit(digest.update, view[:used]),
                writer.submit(_write, handle, view[: -(-used // _BLOCK) * _BLOCK], at),
            ]
            number, used = (number + 1) % _BUFFERS, 0
            wait(busy[number])

        try:
            for part in parts:
                done = 0
                while done < part.numel():
                    size = min(part.numel() - done, _CHUNK - used)
                    buffers[number][used : used + size].copy_(part[done : done + size])
                    used, done = used + size, done + size
                    if used == _CHUNK:
                        submit()
            if used:
                submit()
            for under_way in busy:
                wait(under_way)
            os.ftruncate(handle, total)  # the last block was filled up
            os.fsync(handle)
        finally:
            for under_way in busy:
                with contextlib.suppress(OSError):
                    wait(under_way)
            os.close(handle)
    return Written(bytes=total, sha256=digest.hexdigest())


def wait(under_way: list[Future[None]]) -> None:
    """Until they are done; raises what they raised."""
    for future in under_way:
        future.result()


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)  # a file system without direct writes


def _write(handle: int, view: memoryview, at: int) -> None:
    while view:
        try:
            written = os.pwrite(handle, view, at)
        except OSError as error:
            if error.errno != errno.EINVAL or not _make_buffered(handle):
                raise
            continue
        if written % _BLOCK:
            _make_buffered(handle)
        view, at = view[written:], at + written


def _make_buffered(handle: int) -> bool:
    """Whether direct writes were on, and are now off."""
    flags, direct = fcntl.fcntl(handle, fcntl.F_GETFL), getattr(os, "O_DIRECT", 0)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~direct)
    return bool(flags & direct)
