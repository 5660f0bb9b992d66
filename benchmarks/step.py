"""The training step on a CPU against MegatronBertForPreTraining of transformers, interleaved in one process.

    python benchmarks/step.py                                     # three shapes, fp32 and bf16
    python benchmarks/step.py --shapes tiny12 --formats fp32      # a part; shapes already measured are kept

A step is forward, backward, clipping and AdamW, with dropout. The peer is eager, with fused AdamW; both have memory
that stays warm. Before anything is timed, the losses of five steps without dropout are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ceiling import ceiling_seconds
from groups import milliseconds_by_group
from harness import check_losses, in_turn, keep_memory_warm, machine, read_results, spread, write_results
from variants import OURS, PEERS, Shape, batch_of, new_step

from megatron.data.batches import Batch

RESULTS = Path(__file__).resolve().parent / "results" / "step.json"
SHAPES = {
    "tiny12": Shape(layers=12, hidden=256, heads=4, vocabulary=21248, samples=16, sequence=128),
    "clue": Shape(layers=4, hidden=312, heads=12, vocabulary=8021, samples=32, sequence=128),
    "clue512": Shape(layers=4, hidden=312, heads=12, vocabulary=8021, samples=4, sequence=512),
    "small": Shape(layers=2, hidden=64, heads=2, vocabulary=1000, samples=4, sequence=32),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE = "peer, fp32"
# Relative difference of a loss: rounding in fp32, and in bf16 with fp32 masters. Weights in bf16 alone are not checked:
# updates smaller than their rounding are lost.
TOLERANCES = {"ours, fp32": 2e-6, "ours, bf16": 1e-3, "peer, bf16 autocast": 1e-3}
DROPOUT, CHECKED_STEPS = 0.1, 5


def losses_of(names: list[str], shape: Shape, batch: Batch) -> dict[str, list[float]]:
    """Losses of the first steps without dropout. Raises `RuntimeError` where they must be equal and are not."""
    losses: dict[str, list[float]] = {}
    for name in names:
        step = new_step(name, shape, batch, dropout=0.0, exact_norm=True)
        losses[name] = [step() for _ in range(CHECKED_STEPS)]
        print(f"  {name}: losses {' '.join(f'{loss:.7f}' for loss in losses[name])}", flush=True)
    checked = {name: TOLERANCES[plain] for name in names if (plain := name.removesuffix(", compiled")) in TOLERANCES}
    check_losses(losses, REFERENCE, checked)
    return losses


def measure(shape: Shape, formats: list[str], compiled: list[str], rounds: int) -> dict[str, Any]:
    """One shape: losses, then times in turn, then the ceiling and where our time goes."""
    batch = batch_of(shape)
    masked = len(batch.masked_positions)
    names = [name for fmt in formats for name in (OURS[fmt], *PEERS[fmt])]
    names += [f"{name}, compiled" for name in names if name.split(",")[0] in compiled]
    losses = losses_of(list(dict.fromkeys([REFERENCE, *names])), shape, batch)
    steps = {name: new_step(name, shape, batch, dropout=DROPOUT) for name in names}
    for step in steps.values():  # moments appear, memory becomes warm
        for _ in range(3):
            step()
    calls = in_turn(steps, rounds)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "seconds": spread(each.seconds),
            "minor_page_faults": spread(each.faults)["median"],
            "tokens_a_second": shape.tokens / spread(each.seconds)["median"],
        }
        for name, each in calls.items()
    }
    ceiling = {fmt: ceiling_seconds(shape, masked, DTYPES[fmt]) for fmt in formats}
    return {
        "shape": vars(shape),
        "masked": masked,
        "gigaflop": shape.flops(masked) / 1e9,
        "losses": losses,
        "variants": rows,
        "ceiling_seconds": ceiling,
        "groups_ms": {fmt: milliseconds_by_group(steps[OURS[fmt]]) for fmt in formats},
    }


def show(found: dict[str, Any], formats: list[str]) -> None:
    """Print what was measured of a shape."""
    rows = found["variants"]
    for fmt in formats:
        own = rows[OURS[fmt]]["seconds"]["median"]
        for name in (name for name in rows if fmt in name):
            seconds = rows[name]["seconds"]
            print(
                f"  {name:32} {1e3 * seconds['median']:8.1f} ms [{1e3 * seconds['quarter']:.1f}.."
                f"{1e3 * seconds['three_quarters']:.1f}]  {rows[name]['tokens_a_second']:7,.0f} tokens/s  "
                f"{seconds['median'] / own:5.2f}x ours  {rows[name]['minor_page_faults']:,.0f} page faults"
            )
        least = sum(found["ceiling_seconds"][fmt].values())
        print(
            f"  products alone, {fmt}: {1e3 * least:.1f} ms; ours has {least / own:.0%} of that speed, "
            f"{found['gigaflop'] / own:,.0f} GFLOP/s"
        )
        for group, milliseconds in found["groups_ms"][fmt].items():
            print(f"    {group:40} {milliseconds:8.1f} ms")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["tiny12", "clue", "clue512"])
    parser.add_argument("--formats", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--rounds", type=int, default=5, help="each has two timed steps of every variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", nargs="+", choices=["ours", "peer"], default=[], help="compiled besides as it is")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine("transformers"), "dropout": DROPOUT, "rounds": options.rounds}
    kept = read_results(options.output)
    found["shapes"] = kept["shapes"] if kept.get("machine") == found["machine"] else {}
    for name in options.shapes:
        print(f"{name}:", flush=True)
        found["shapes"][name] = measure(SHAPES[name], options.formats, options.compile, options.rounds)
        show(found["shapes"][name], options.formats)
        write_results(options.output, found)


if __name__ == "__main__":
    keep_memory_warm()
    main()
