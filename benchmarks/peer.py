"""A peer in an interpreter of its own, for benchmarks that must not share a process with it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().with_name("megatron_core_peer.py")


class Peer:
    """megatron-core behind a pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The peer's answer; `RuntimeError` if it died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"call": name, **arguments}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the peer died; its last words are above")
        found: dict[str, Any] = json.loads(answer)
        return found


@contextmanager
def megatron_core(python: str) -> Iterator[Peer]:
    """megatron-core in the interpreter `python`, on the cores of this process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [python, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def summary(values: list[float]) -> dict[str, float]:
    """Median and extremes of some repetitions."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
