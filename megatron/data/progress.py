"""How far preprocessing is: each process writes its counts to a small file of its own, a thread prints their sum.

So no lock is held by a process that may be killed, and it works for processes on several machines that share a folder.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 1.0
COPY_INTERVAL = 5.0
"""Seconds between two lines, at least; of copying, which is quick."""
_COUNTS = struct.Struct("<4q")

Progress = Callable[[int, int, int, int], None]
"""Add documents, bytes of text, bytes of the inputs on disk, and such bytes that were done by an earlier run."""


def make_progress(folder: Path) -> Progress:
    """A function that adds to the counts of this process, for `progress_lines` of the same folder to print."""
    totals = [0, 0, 0, 0]
    file = open(folder / f"{socket.gethostname()}-{os.getpid()}.progress", "wb", buffering=0)  # noqa: SIM115

    def add(documents: int, text_bytes: int, disk_bytes: int, done_before: int) -> None:
        for i, count in enumerate((documents, text_bytes, disk_bytes, done_before)):
            totals[i] += count
        os.pwrite(file.fileno(), _COUNTS.pack(*totals), 0)

    return add


@contextmanager
def progress_lines(folder: Path, disk_bytes: int, documents: int) -> Iterator[None]:
    """While inside, print a line when `documents` more are done, and one at the end unless an error ends it.

    `disk_bytes` of all inputs are 100 %.
    """
    started = time.monotonic()
    ended = threading.Event()

    def print_lines() -> None:
        printed = 0
        while not ended.wait(INTERVAL):
            counts = _read(folder)
            if counts[0] // documents > printed // documents:
                print(_line(counts, time.monotonic() - started, disk_bytes), flush=True)
                printed = counts[0]

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
        print(_line(_read(folder), time.monotonic() - started, disk_bytes), flush=True)
    finally:
        ended.set()
        thread.join()


def copy_progress(total: int) -> Callable[[int], None]:
    """A function that is told of bytes as they are copied, and prints share, rate and time left of `total`."""
    started = printed = time.monotonic()
    done = 0

    def copied(count: int) -> None:
        nonlocal done, printed
        done += count
        now = time.monotonic()
        if now - printed >= COPY_INTERVAL:
            printed = now
            rate = done / (now - started)
            print(
                f"copied {done / 1e6:,.1f} MB | {rate / 1e6:,.1f} MB/s | {100 * done / total:.1f} % | "
                f"ETA {_clock((total - done) / rate)}",
                flush=True,
            )

    return copied


def _read(folder: Path) -> list[int]:
    contents = (path.read_bytes() for path in folder.glob("*.progress"))
    counts = [_COUNTS.unpack(content) for content in contents if len(content) == _COUNTS.size]
    return [sum(column) for column in zip(*counts, strict=True)] or [0, 0, 0, 0]


def _line(counts: list[int], seconds: float, disk_bytes: int) -> str:
    documents, text_bytes, read_bytes, done_before = counts
    share = (done_before + read_bytes) / max(1, disk_bytes)
    left = seconds * max(0, disk_bytes - done_before - read_bytes) / read_bytes if read_bytes else 0
    return (
        f"{documents:,} documents | {text_bytes / 1e6:,.1f} MB | {text_bytes / 1e6 / seconds:.2f} MB/s | "
        f"{documents / seconds:,.0f} documents/s | {100 * share:.1f} % | "
        f"ETA {_clock(left)}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
