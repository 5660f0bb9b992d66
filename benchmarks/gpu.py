"""Kernels and training steps on a GPU, against what the same GPU reaches in the same run.

    python benchmarks/gpu.py                              # writes benchmarks/results/gpu-NAME.json
    python benchmarks/gpu.py --parts ceilings kernels     # a part; others in the file are kept
    python benchmarks/gpu.py --device cpu --small         # the same code where there is no GPU, to see that it runs

Ceilings are a large product, the products of each model's layers, attention, and a copy. A kernel is measured against
the copy in bytes a second, and against torch.compile of torch's operations (`gpu_kernels.py`); a step in the share of
the product's FLOP/s, and of three models against transformers where it is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import measured, seconds_of
from harness import read_results, write_results
from variants import Shape, batch_of, ours, peer_step

from megatron.config import PrecisionConfig
from megatron.ops import cuda
from megatron.planning.flops import pretraining_flops
from megatron.training.graphs import capture, use_own_stream

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARY, SEQUENCE, MASKED = 21248, 512, 0.15
PARTS = ("ceilings", "kernels", "steps")
EAGER, COMPILED = "transformers", "transformers, compiled"
ROWS, SMALL_ROWS = [(32768, 1024), (16384, 2048), (8192, VOCABULARY)], [(64, 48), (8, 9000)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and the samples of a step. peers: what of transformers is measured, too; graphed: whether CUDA graphs."""

    shape: Shape
    peers: Sequence[str] = ()
    graphed: bool = False


def models(small: bool) -> dict[str, Model]:
    """Those of the table, by name."""
    if small:
        shape = Shape(layers=2, hidden=64, heads=2, vocabulary=1000, samples=2, sequence=32)
        return {"small": Model(shape=shape, peers=(EAGER,), graphed=True)}

    def shape(layers: int, hidden: int, heads: int, samples: int, sequence: int = SEQUENCE) -> Shape:
        return Shape(
            layers=layers, hidden=hidden, heads=heads, vocabulary=VOCABULARY, samples=samples, sequence=sequence
        )

    base = shape(12, 768, 12, 64)
    return {
        "tiny": Model(shape=shape(4, 312, 12, 32, 128), graphed=True),
        "base": Model(shape=base),
        "base, BERT": Model(shape=dataclasses.replace(base, architecture="bert"), peers=(COMPILED,)),
        "345M": Model(shape=shape(24, 1024, 16, 32), peers=(EAGER,)),
        "1.3B": Model(shape=shape(24, 2048, 8, 16), peers=(EAGER,)),
        "3.9B": Model(shape=shape(48, 2560, 40, 8)),
    }


def ceilings(device: str, table: Mapping[str, Model], small: bool) -> dict[str, Any]:
    """TFLOP/s of products and attention in bf16, GB/s of a copy (read and written)."""
    side, length = (256, 1 << 20) if small else (8192, 1 << 30)
    found: dict[str, Any] = {"product": product(side, side, side, device), "copy": copy_rate(length, device)}
    for name, model in table.items():
        one = model.shape
        h, masked = one.hidden, int(MASKED * one.tokens)
        found[name] = {
            "query, key, value": product(one.tokens, h, 3 * h, device),
            "attention's output": product(one.tokens, h, h, device),
            "feed-forward, first": product(one.tokens, h, 4 * h, device),
            "feed-forward, second": product(one.tokens, 4 * h, h, device),
            "head": product(masked, h, one.vocabulary, device),
            "attention, both ways": attention(one, device),
        }
    return found


def copy_rate(length: int, device: str) -> float:
    """GB/s of a copy of so many bytes, read and written."""
    source, target = (torch.empty(length, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * length / seconds_of(lambda: target.copy_(source), device) / 1e9


def product(m: int, k: int, n: int, device: str) -> float:
    """TFLOP/s of [m, k] x [k, n] in bf16."""
    a, b = (torch.randn(size, device=device, dtype=torch.bfloat16) for size in ((m, k), (k, n)))
    return 2 * m * k * n / seconds_of(lambda: torch.mm(a, b), device) / 1e12


def attention(shape: Shape, device: str) -> float:
    """TFLOP/s of torch's attention without dropout, forward and backward."""
    sizes = (shape.samples, shape.heads, shape.sequence, shape.hidden // shape.heads)
    q, k, v = (torch.randn(sizes, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gradient = torch.randn(sizes, device=device, dtype=torch.bfloat16)

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)

    flops = 3 * 2 * 2 * shape.samples * shape.sequence**2 * shape.hidden
    return flops / seconds_of(both, device) / 1e12


def kernels(device: str, copy: float, small: bool) -> dict[str, Any]:
    """What `gpu_kernels` measures, for each shape of activations and for the logits."""
    found: dict[str, Any] = {}
    for rows, columns in SMALL_ROWS if small else ROWS:
        found[f"{rows} x {columns}"] = measured(rows, columns, device, copy)
        for name, row in found[f"{rows} x {columns}"].items():
            print(f"  {name}, {rows} x {columns}: {row}", flush=True)
    return found


def steps(device: str, ceiling: float, table: Mapping[str, Model]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole training steps in bf16 with dropout 0.1: samples, tokens and FLOPs a second, their share of the product's.

    By model, then by who takes the step: "ours", "ours, graph", "transformers", "transformers, compiled".
    """
    for name, model in table.items():
        found = {}
        for who in ("ours", "ours, graph") if model.graphed else ("ours",):
            found[who] = of_ours(model.shape, device, ceiling, graphed=who != "ours")
        if importlib.util.find_spec("transformers"):
            for who in model.peers:
                found[who] = best_peer(model.shape, device, compiled=who.endswith("compiled"))
        print(f"  {name}: {found}", flush=True)
        yield name, found


def of_ours(shape: Shape, device: str, ceiling: float, *, graphed: bool) -> dict[str, float]:
    """Our step, of as many samples as fit: those of the shape, half of them, and so on. graphed: by CUDA graphs."""
    try:
        return measured_step(shape, device, ceiling, graphed=graphed)
    except torch.cuda.OutOfMemoryError:
        if shape.samples == 1:
            raise
    emptied(device)
    return of_ours(dataclasses.replace(shape, samples=shape.samples // 2), device, ceiling, graphed=graphed)


def measured_step(shape: Shape, device: str, ceiling: float, *, graphed: bool) -> dict[str, float]:
    """Our step with these samples."""
    batch = batch_of(shape)
    contestant = ours(
        shape,
        batch,
        dropout=0.1,
        precision=PrecisionConfig(bf16=True),
        device=torch.device(device),
        graph=None if not graphed else capture if device == "cuda" else lambda work: work,
    )
    seconds = seconds_of(contestant.step, device, repetitions=8)
    flops = pretraining_flops(
        shape.model(0.1),
        tokens=shape.tokens,
        squared_lengths=shape.samples * shape.sequence**2,
        masked=len(batch.masked_positions),
        samples=shape.samples,
    )
    del contestant
    return {
        "samples": shape.samples,
        "tokens_per_second": shape.tokens / seconds,
        "tflops_per_second": flops / seconds / 1e12,
        "of_product": flops / seconds / 1e12 / ceiling,
        "peak_gb": emptied(device),
    }


def emptied(device: str) -> float:
    """Give memory back; the most that there was since the last call, in GB."""
    gc.collect()
    if device == "cpu":
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def best_peer(shape: Shape, device: str, *, compiled: bool) -> dict[str, float]:
    """transformers in bf16 with fused AdamW at its best batch; compiled, which takes a minute each time, at ours."""
    best: dict[str, float] = {}
    for samples in (shape.samples,) if compiled else (shape.samples, 2 * shape.samples, shape.samples // 2):
        tried = dataclasses.replace(shape, samples=max(1, samples))
        try:
            step = peer_step(
                tried,
                batch_of(tried),
                dropout=0.1,
                weights=torch.bfloat16,
                autocast=False,
                compiled=compiled,
                device=torch.device(device),
            )
            rate = tried.tokens / seconds_of(step, device, repetitions=5)
        except torch.cuda.OutOfMemoryError:
            continue
        finally:
            step = None
            peak = emptied(device)
        if rate > best.get("tokens_per_second", 0.0):
            best = {"samples": tried.samples, "tokens_per_second": rate, "peak_gb": peak}
    return best


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-NAME.json")
    options = parser.parse_args()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("PyTorch sees no GPU")
        use_own_stream(torch.device("cuda"))
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    output = options.output or RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    table, found = models(options.small), read_results(output)

    def keep(part: str, result: dict[str, Any]) -> None:
        found[part] = result
        write_results(output, found)  # what fails later costs what is later

    found["machine"] = {"device": name, "torch": torch.__version__, "kernels": vars(cuda.kernels())}
    if "ceilings" in options.parts or "ceilings" not in found:
        keep("ceilings", ceilings(options.device, table, options.small))
        print(f"ceilings: {found['ceilings']}", flush=True)
    if "kernels" in options.parts:
        keep("kernels", kernels(options.device, found["ceilings"]["copy"], options.small))
    if "steps" in options.parts:
        for name, row in steps(options.device, found["ceilings"]["product"], table):
            keep("steps", {**found.get("steps", {}), name: row})
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
