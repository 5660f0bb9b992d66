"""One process makes a file, all others that want it wait: on one host or over a shared folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.errors import UserError
from megatron.files import take_lock

POLL_SECONDS = 0.05
TELL_SECONDS = 5.0
"""Seconds of waiting after which it is said for whom."""


@contextmanager
def one_maker(path: Path, *, limit: float) -> Iterator[bool]:
    """Whether this process is the one to make `path`; False once another has made it. limit: of waiting, in seconds.

    The lock is `flock` on a file beside it, which the kernel takes back from a process that dies. Where the file system
    has no such locks, everyone is the one: what they make must appear by rename. Raises `UserError` that names the
    process waited for at the limit, and `OSError` where the folder cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    began = time.monotonic()
    told = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                holder = take_lock(handle)
            except OSError:
                yield True
                return
            # A holder removes the file when done: a lock on what is no longer there is worth nothing.
            if not holder and _is_still(lock, handle):
                try:
                    yield True
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)
        if not holder:
            continue
        if path.exists():
            yield False
            return
        waited = time.monotonic() - began
        if waited > limit:
            raise UserError(
                f"{path} is not there after {waited / 60:.3g} minutes: {holder} is still making it; look what it does, "
                "or give more time with --startup-timeout-minutes"
            )
        if waited > TELL_SECONDS and not told:
            print(f"waiting for {path}: {holder} makes it", flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _is_still(lock: Path, handle: int) -> bool:
    try:
        there = os.stat(lock)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (os.fstat(handle).st_dev, os.fstat(handle).st_ino)
