"""One job at a time writes to a save folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.errors import UserError
from megatron.mpu.context import ParallelContext

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path | None, context: ParallelContext) -> Iterator[None]:
    """Hold a save folder while the block runs; rank 0 does, for all. The system lets it go when the process dies.

    None holds nothing. Raises `UserError` on all ranks if another job has the folder. File systems that have no locks
    are not guarded.
    """
    file = None
    with context.together():
        if folder is not None and context.is_main:
            path = folder / LOCK
            try:
                file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN) and file is not None:
                    file.seek(0)
                    holder = file.read(200) or "unknown"
                    file.close()
                    raise UserError(
                        f"--save {folder} is being written by another job ({holder}); stop it, or choose another folder"
                    ) from None
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                    raise UserError(f"--save {folder} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        if file is not None:
            file.close()
