"""Files that are either whole or absent: temporary name, fsync, rename; texts of users, read by the line.

A rename is durable only if the data and the folder were flushed (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megatron.errors import UserError


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, flushed to the disk on leaving."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_lock(handle: int) -> str:
    """Try to hold an open file until it is closed: "" if it is held now, else who holds it.

    `flock`, which the kernel takes back from a process that dies. The holder's name is written into the file. Raises
    `OSError` where the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 512, 0).decode(errors="replace") or "another process"
    os.truncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
    return ""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with durable_file(temporary) as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text that a user named; what: it is in messages. Raises `UserError` if it cannot be read.

    Only the line feed ends a line, with any carriage returns before it: no other line end of Unicode does.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 (byte {error.start})") from None
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def write_file(path: Path, content: bytes) -> None:
    """`replace_file` for what a user asked for; makes the folder. Raises `UserError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
