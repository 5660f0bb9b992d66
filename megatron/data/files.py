"""Small files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from megatron.errors import UserError


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; makes the folder.

    Raises `UserError` where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
