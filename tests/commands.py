"""The commands of the repository, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start(
    *argv: object,
    processes: int = 1,
    launcher: Sequence[str] | None = None,
    environment: Mapping[str, str] = {},
    **options: Any,
) -> subprocess.Popen[str]:
    """Start a script by this interpreter in the root, under torchrun where there are several processes.

    launcher: arguments of torchrun otherwise. environment: variables besides those of the tests. options: of `Popen`.
    """
    if launcher is None and processes > 1:
        launcher = ["--standalone", f"--nproc-per-node={processes}"]
    torchrun = ["-m", "torch.distributed.run", *launcher] if launcher else []
    return subprocess.Popen(
        [sys.executable, *torchrun, *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def run(*argv: object, seconds: float = 120.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """`start` and `finish`."""
    process = start(*argv, **options)
    return subprocess.CompletedProcess(process.args, *finish(process, seconds))
