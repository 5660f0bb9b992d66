"""The archive of result files that is sent to a server."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from megatron.files import write_file
from megatron.tasks.benchmark.boards import Board


def write_archive(files: Sequence[Path], folder: Path, name: str) -> Path:
    """A flat zip archive FOLDER/NAME of result files, whole or absent. Raises `UserError` if it cannot be written."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.name)
    write_file(folder / name, content.getvalue())
    return folder / name


def of_board(files: Sequence[Path], board: Board) -> list[Path]:
    """Those of the files that a server reads."""
    return [path for path in files if board.find(path.name) is not None]
