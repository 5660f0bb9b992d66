"""Collectives of the ranks of one host: gloo over loopback TCP against shared memory, interleaved in the same run.

    python benchmarks/collectives.py            # 2 ranks, one thread each

The floor is what no all-reduce of private buffers can go below: every rank reads and writes its tensor once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.mpu import shared_memory

RESULTS = Path(__file__).resolve().parent / "results" / "collectives.json"
# Renamed in PyTorch 2.13.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
GRADIENTS = 15_200_000  # parameters of a 12 x 256 encoder: 61 MB in fp32
CASES: list[tuple[str, str, int, torch.dtype]] = [
    ("all-reduce", "4 KB", 1024, torch.float32),
    ("all-reduce", "2.1 MB, fp32 (activations 16 x 128 x 256)", 16 * 128 * 256, torch.float32),
    ("all-reduce", "1.0 MB, bf16 (the same activations)", 16 * 128 * 256, torch.bfloat16),
    ("all-reduce", "2.1 MB, bf16", 32 * 128 * 256, torch.bfloat16),
    ("all-reduce", "61 MB, fp32 (gradients)", GRADIENTS, torch.float32),
    ("reduce-scatter", "61 MB, fp32 (gradients)", GRADIENTS, torch.float32),
    ("all-gather", "61 MB, fp32 (parameters)", GRADIENTS, torch.float32),
]


def operations(name: str, count: int, dtype: torch.dtype, group: Any, rank: int, size: int) -> dict[str, Any]:
    """The same operation by gloo and through shared memory, and the floor; checks that the two agree."""
    if name == "all-reduce":
        tensor = torch.zeros(count, dtype=dtype)
        check = [torch.arange(count).remainder(11).add(rank).to(dtype) for _ in range(2)]
        dist.all_reduce(check[0])
        shared_memory.all_reduce_(group, check[1])
        work: dict[str, Callable[[], Any]] = {
            "gloo": lambda: dist.all_reduce(tensor),
            "shared memory": lambda: shared_memory.all_reduce_(group, tensor),
            "floor": lambda: tensor.mul_(0.5),
        }
    else:
        whole, part = torch.zeros(count // size * size, dtype=dtype), torch.zeros(count // size, dtype=dtype)
        full = torch.arange(whole.numel()).remainder(11).add(rank).to(dtype)
        if name == "reduce-scatter":
            check = [torch.empty_like(part) for _ in range(2)]
            _reduce_scatter(check[0], full)
            shared_memory.reduce_scatter(group, check[1], full)
            work = {
                "gloo": lambda: _reduce_scatter(part, whole),
                "shared memory": lambda: shared_memory.reduce_scatter(group, part, whole),
            }
        else:
            check = [torch.empty_like(whole) for _ in range(2)]
            _all_gather(check[0], full[: part.numel()])
            shared_memory.all_gather_into(group, check[1], full[: part.numel()])
            work = {
                "gloo": lambda: _all_gather(whole, part),
                "shared memory": lambda: shared_memory.all_gather_into(group, whole, part),
            }
    if not torch.equal(check[0], check[1]):
        raise RuntimeError(f"{name}: gloo and shared memory differ")
    return work


def measure(rank: int, size: int, store: str, seconds: float, results: Any) -> None:
    """One rank: each case's variants in turn, a call untimed and one timed; milliseconds of the slower rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    group = shared_memory.open_shared_group(dist.group.WORLD, timeout_seconds=60.0)
    if group is None:
        raise RuntimeError("no shared memory here")
    rows = []
    for name, label, count, dtype in CASES:
        work = operations(name, count, dtype, group, rank, size)
        times: dict[str, list[float]] = {variant: [] for variant in work}
        until = time.monotonic() + seconds
        more = torch.ones(1)
        while more.item() > 0:
            for variant, call in work.items():
                call()  # what the variant before left in caches and queues is not this one's
                group.barrier()
                begin = time.perf_counter()
                call()
                times[variant].append((time.perf_counter() - begin) * 1e3)
            more.fill_(float(time.monotonic() < until))
            shared_memory.all_reduce_(group, more, "min")
        everybody: list[Any] = [None] * size
        dist.all_gather_object(everybody, times)
        slowest = {
            variant: [max(calls) for calls in zip(*(rank_times[variant] for rank_times in everybody), strict=True)]
            for variant in work
        }
        rows.append({"operation": name, "tensor": label} | {key: spread(calls) for key, calls in slowest.items()})
    if rank == 0:
        results.put(rows)
    dist.destroy_process_group()


def spread(milliseconds: list[float]) -> dict[str, float]:
    """Median and the middle half."""
    low, median, high = statistics.quantiles(milliseconds, n=4)
    return {"median_ms": round(median, 4), "quarter_ms": round(low, 4), "three_quarters_ms": round(high, 4)}


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = processes.Queue()
        store = str(Path(folder) / "store")
        arguments = [(rank, options.ranks, store, options.seconds, results) for rank in range(options.ranks)]
        ranks = [processes.Process(target=measure, args=each, daemon=True) for each in arguments]
        for process in ranks:
            process.start()
        rows = results.get(timeout=120 + 20 * options.seconds)
        for process in ranks:
            process.join()
    for row in rows:
        gloo, shared = row["gloo"]["median_ms"], row["shared memory"]["median_ms"]
        floor = f"   floor {row['floor']['median_ms']:8.3f} ms" if "floor" in row else ""
        print(
            f"{row['operation']:14} {row['tensor']:42} gloo {gloo:8.3f} ms   shared memory {shared:8.3f} ms"
            f"   {gloo / shared:5.1f} times{floor}"
        )
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"ranks": options.ranks, "machine": machine, "cases": rows}, indent=1)
    options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
