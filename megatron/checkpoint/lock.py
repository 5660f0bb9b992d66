"""One job at a time writes to a save folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.errors import UserError
from megatron.files import take_lock
from megatron.mpu.context import ParallelContext

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path | None, context: ParallelContext) -> Iterator[None]:
    """Hold a save folder while the block runs; rank 0 does, for all. The system lets it go when the process dies.

    None holds nothing. Raises `UserError` on all ranks if another job has the folder. File systems that have no locks
    are not guarded.
    """
    handle = None
    with context.together():
        if folder is not None and context.is_main:
            try:
                handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(f"--save {folder} cannot be written: {error.strerror}") from None
            with contextlib.suppress(OSError):  # no locks here
                holder = take_lock(handle)
                if holder:
                    os.close(handle)
                    raise UserError(
                        f"--save {folder} is being written by another job ({holder}); stop it, or choose another folder"
                    )
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
