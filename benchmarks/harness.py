"""What the benchmarks of the training step share: the machine, rounds in turn, equal losses, a results file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# glibc gives every large tensor back to the kernel and takes it again, at the cost of a page fault for each 4 KiB.
WARM_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Measured calls of a variant: seconds and minor page faults of each."""

    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)


def keep_memory_warm() -> None:
    """Start this script anew with an allocator that keeps its pages, unless it has one already."""
    if os.environ.get("GLIBC_TUNABLES") != WARM_MEMORY:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": WARM_MEMORY})


def machine(*packages: str) -> dict[str, Any]:
    """The processor, the threads in use, and the versions of Python, torch and some packages."""
    name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "processor": name[1] if name else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def check_losses(losses: Mapping[str, Sequence[float]], reference: str, tolerances: Mapping[str, float]) -> None:
    """Whether variants have the losses of `reference`, step by step, but for a relative difference.

    tolerances: of each variant that is checked. Raises `RuntimeError` naming the variant and the step.
    """
    for name, tolerance in tolerances.items():
        for step, (loss, expected) in enumerate(zip(losses[name], losses[reference], strict=True), 1):
            if not abs(loss - expected) <= tolerance * abs(expected):  # nan is a difference
                raise RuntimeError(
                    f"step {step}: the loss of {name} is {loss:.7f}, that of {reference} {expected:.7f}; "
                    f"they may differ by {tolerance:g}"
                )


def in_turn(variants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 2) -> dict[str, Calls]:
    """Measure variants in turn: in each round, each is called once untimed and `calls` times timed.

    So all see the same drift of the machine, and what the variant before left in caches and heap is not this one's.
    """
    found = {name: Calls() for name in variants}
    started = time.perf_counter()
    for number in range(1, rounds + 1):
        for name, call in variants.items():
            call()
            for _ in range(calls):
                faults, begin = _minor_faults(), time.perf_counter()
                call()
                found[name].seconds.append(time.perf_counter() - begin)
                found[name].faults.append(_minor_faults() - faults)
        each = (time.perf_counter() - started) / number
        left = each * (rounds - number)
        print(f"  round {number} of {rounds}, {each:.1f} s each, {left:.0f} s left", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of two values or more."""
    quarter, median, three_quarters = statistics.quantiles(values, n=4, method="inclusive")
    return {"quarter": quarter, "median": median, "three_quarters": three_quarters}


def read_results(path: Path) -> dict[str, Any]:
    """A results file, or nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def write_results(path: Path, found: Mapping[str, Any]) -> None:
    """Write a results file; real numbers to eight significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
