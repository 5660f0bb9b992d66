"""Peak resident memory of a training step on a CPU against MegatronBertForPreTraining of transformers.

    python benchmarks/memory.py                         # the base model, 32 samples of 512 tokens
    python benchmarks/memory.py --formats fp32

Every variant and batch size has a process of its own, which makes two steps: the second has moments and activations.
What would not fit into the memory at hand is extrapolated linearly from the two largest batches that do.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from account import account
from harness import keep_memory_warm, machine, write_results
from variants import OURS, PEERS, Shape, batch_of, new_ours, new_step

RESULTS = Path(__file__).resolve().parent / "results" / "memory.json"
DROPOUT = 0.1
USABLE = 0.85  # share of the available memory that a batch is allowed to need


def shape_of(preset: str, samples: int) -> Shape:
    """The model and batch of a name."""
    if preset == "base":
        return Shape(layers=12, hidden=768, heads=12, vocabulary=21248, samples=samples, sequence=512)
    return Shape(layers=2, hidden=64, heads=2, vocabulary=1000, samples=samples, sequence=128)


def kibibytes(field: str, file: str) -> int:
    """A field of /proc/meminfo or /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{file} has no {field}")
    return int(found[1])


def measure_here(name: str, shape: Shape) -> dict[str, Any]:
    """Bytes resident before the model is made and at the peak of two steps; of ours also what they are."""
    batch = batch_of(shape)
    before = kibibytes("VmRSS", "/proc/self/status") * 1024
    contestant = new_ours(name, shape, batch, dropout=DROPOUT) if name in OURS.values() else None
    step = new_step(name, shape, batch, dropout=DROPOUT) if contestant is None else contestant.step
    for _ in range(2):
        step()
    peak = kibibytes("VmHWM", "/proc/self/status") * 1024
    found: dict[str, Any] = {"samples": shape.samples, "before": before, "peak": peak}
    if contestant is not None:
        found["account"] = account(contestant)
    return found


def measure(name: str, preset: str, samples: int, threads: int) -> dict[str, Any]:
    """`measure_here` in a process of its own."""
    arguments = ["--model", preset, "--samples", str(samples), "--threads", str(threads), "--here", name]
    process = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    print(f"  {samples:3} samples: {found['peak'] / 1e9:.2f} GB, {found['before'] / 1e9:.2f} GB before", flush=True)
    return found


def extrapolated(points: list[dict[str, Any]], samples: int, what: str) -> float:
    """A quantity at another batch size, on the line through the last two points."""
    first, last = points[-2:]
    slope = (last[what] - first[what]) / (last["samples"] - first["samples"])
    return float(last[what] + slope * (samples - last["samples"]))


def measure_up_to(name: str, preset: str, samples: int, threads: int) -> dict[str, Any]:
    """A variant at an eighth, a quarter, a half and the whole of the batch, as far as memory goes."""
    points: list[dict[str, Any]] = []
    for size in (samples // 8, samples // 4, samples // 2, samples):
        available = kibibytes("MemAvailable", "/proc/meminfo") * 1024
        if len(points) > 1 and extrapolated(points, size, "peak") > USABLE * available:
            print(f"  {size:3} samples: would not fit", flush=True)
            break
        points.append(measure(name, preset, size, threads))
    reached = points[-1]["samples"] == samples
    peak = points[-1]["peak"] if reached else extrapolated(points, samples, "peak")
    return {
        "measured": [{key: point[key] for key in ("samples", "before", "peak")} for point in points],
        "extrapolated": not reached,
        "peak": peak,
        "of_the_step": peak - points[-1]["before"],
        "account": points[-1].get("account"),
        "account_samples": points[-1]["samples"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["base", "small"], default="base")
    parser.add_argument("--samples", type=int, default=32, help="of the batch; a multiple of 8")
    parser.add_argument("--formats", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--here", metavar="VARIANT", help="measure one variant in this process and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.here:
        print(json.dumps(measure_here(options.here, shape_of(options.model, options.samples))))
        return
    if options.samples < 8 or options.samples % 8:
        parser.error(f"--samples {options.samples} is not a multiple of 8")
    found: dict[str, Any] = {
        "machine": machine("transformers"),
        "shape": vars(shape_of(options.model, options.samples)),
        "variants": {},
    }
    for name in (name for fmt in options.formats for name in (OURS[fmt], *PEERS[fmt])):
        print(f"{name}:", flush=True)
        found["variants"][name] = measure_up_to(name, options.model, options.samples, options.threads)
    for fmt in options.formats:
        own = found["variants"][OURS[fmt]]["of_the_step"]
        for name in PEERS[fmt]:
            theirs = found["variants"][name]["of_the_step"]
            print(f"{OURS[fmt]}: {own / 1e9:.2f} GB; {name}: {theirs / 1e9:.2f} GB; {own / theirs:.2f} of it")
    write_results(options.output, found)


if __name__ == "__main__":
    keep_memory_warm()
    main()
