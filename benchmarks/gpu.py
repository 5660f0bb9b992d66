"""Kernels and training steps on a GPU, against what the same GPU reaches in the same run.

    python benchmarks/gpu.py                              # some eight minutes; writes benchmarks/results/gpu-NAME.json
    python benchmarks/gpu.py --parts ceilings kernels     # a part; others in the file are kept
    python benchmarks/gpu.py --device cpu --small         # the same code where there is no GPU, to see that it runs

Ceilings are a large product, the products of each model's layers, attention, and a copy. A kernel is measured against
the copy in bytes a second, and against torch.compile of torch's operations; a step in the share of the product's
FLOP/s, and against transformers where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import read_results, write_results
from torch import Tensor
from variants import Shape, batch_of, ours, peer_step

from megatron.config import PrecisionConfig
from megatron.mpu.random import site_key
from megatron.ops import cuda
from megatron.ops.adamw import Update, adamw_, sum_of_squares
from megatron.planning.flops import pretraining_flops

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARY, SEQUENCE, MASKED = 21248, 512, 0.15
PARTS = ("ceilings", "kernels", "steps")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and the samples of a step. peers: whether transformers is measured, too."""

    shape: Shape
    peers: bool = False


def models(small: bool) -> dict[str, Model]:
    """Those of the table, by name."""
    if small:
        shape = Shape(layers=2, hidden=64, heads=2, vocabulary=1000, samples=2, sequence=32)
        return {"small": Model(shape=shape, peers=True)}

    def shape(layers: int, hidden: int, heads: int, samples: int, sequence: int = SEQUENCE) -> Shape:
        return Shape(
            layers=layers, hidden=hidden, heads=heads, vocabulary=VOCABULARY, samples=samples, sequence=sequence
        )

    return {
        "tiny": Model(shape=shape(4, 312, 12, 32, 128)),
        "base": Model(shape=shape(12, 768, 12, 64)),
        "345M": Model(shape=shape(24, 1024, 16, 32), peers=True),
        "1.3B": Model(shape=shape(24, 2048, 8, 16), peers=True),
        "3.9B": Model(shape=shape(48, 2560, 40, 8)),
    }


def seconds_of(call: Callable[[], object], device: str, repetitions: int = 20) -> float:
    """Median seconds of a call, warm; on a GPU between events on its stream."""
    for _ in range(3):
        call()
    found = []
    for _ in range(repetitions):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    return statistics.median(found)


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


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's call, the bytes that it cannot but move, and the same of torch's operations, if there is such."""

    name: str
    call: Callable[[], object]
    bytes: int
    composition: Callable[[], object] | None = None


def kernel_table(rows: int, columns: int, device: str) -> Iterator[Kernel]:
    """Every kernel on activations [rows, columns] in bf16."""
    operators, size = torch.ops.megatron, rows * columns

    def matrix() -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=torch.bfloat16)

    def vector(dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(columns, device=device, dtype=dtype)

    x, block, residual, bias, weight, shift = matrix(), matrix(), matrix(), vector(), vector(), vector()
    keys = torch.randint(-(2**63), 2**63 - 1, (rows,), device=device)
    dropout, sums = (keys, site_key(1, 1), 0.1), [torch.zeros(columns, device=device) for _ in range(3)]
    total, _, mean, rstd = operators.add_norm(block, bias, residual, weight, shift, 1e-5, *dropout)
    _, _, own_mean, own_rstd = operators.add_norm(None, None, x, weight, shift, 1e-5, None, 0, 0.0)
    nothing = (None, 0, 0.0)

    def composed_norm() -> Tensor:
        return F.layer_norm(residual + F.dropout(block + bias, 0.1), (columns,), weight, shift)

    yield Kernel(
        name="LayerNorm",
        call=lambda: operators.add_norm(None, None, x, weight, shift, 1e-5, *nothing),
        bytes=4 * size,
        composition=lambda: F.layer_norm(x, (columns,), weight, shift),
    )
    yield Kernel(
        name="LayerNorm, backward",
        call=lambda: operators.add_norm_gradients(
            None, block, x, weight, own_mean, own_rstd, False, None, sums[1], sums[2], *nothing
        ),
        bytes=6 * size,
    )
    yield Kernel(
        name="bias + dropout + residual + LayerNorm",
        call=lambda: operators.add_norm(block, bias, residual, weight, shift, 1e-5, *dropout),
        bytes=8 * size,
        composition=composed_norm,
    )
    yield Kernel(
        name="bias + dropout + residual + LayerNorm, backward",
        call=lambda: operators.add_norm_gradients(
            residual, block, total, weight, mean, rstd, True, *sums, *dropout
        ),
        bytes=10 * size,
    )
    yield Kernel(
        name="bias + GELU",
        call=lambda: operators.bias_activation(x, bias, 0),
        bytes=4 * size,
        composition=lambda: F.gelu(x + bias),
    )
    yield Kernel(
        name="bias + GELU, backward",
        call=lambda: operators.bias_activation_gradients(block, x, bias, sums[0], 0),
        bytes=6 * size,
    )
    scores = x.view(1, rows, columns)
    probabilities, _ = operators.softmax(scores, None, 0.1, *dropout)
    yield Kernel(
        name="softmax + dropout",
        call=lambda: operators.softmax(scores, None, 0.1, *dropout),
        bytes=6 * size,
        composition=lambda: F.dropout(torch.softmax(scores * 0.1, -1), 0.1),
    )
    yield Kernel(
        name="softmax + dropout, backward",
        call=lambda: operators.softmax_gradients(block.view_as(scores), probabilities, 0.1, *dropout),
        bytes=6 * size,
    )
    labels, factor = torch.randint(columns, (rows,), device=device), torch.ones(rows, device=device)
    yield Kernel(
        name="cross-entropy, statistics",
        call=lambda: operators.cross_entropy(x, bias, labels, 0, columns),
        bytes=2 * size,
        composition=lambda: F.cross_entropy((x + bias).float(), labels, reduction="none"),
    )
    largest, exponentials, _ = operators.cross_entropy(residual, bias, labels, 0, columns)
    yield Kernel(
        name="cross-entropy, gradient",
        call=lambda: operators.cross_entropy_gradients_(
            residual, bias, labels, largest, exponentials, factor, sums[0], 0, columns
        ),
        bytes=4 * size,
    )
    yield Kernel(name="sum over rows", call=lambda: operators.add_rows_(sums[0], x), bytes=2 * size)
    weights, gradients, first, second = (torch.zeros(size, device=device) for _ in range(4))
    copy = torch.empty(size, device=device, dtype=torch.bfloat16)
    update = Update(
        factor=1.0, learning_rate=1e-4, weight_decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, step=1
    )
    yield Kernel(
        name="AdamW and bf16 copy",
        call=lambda: adamw_(weights, gradients, first, second, copy, update),
        bytes=30 * size,
    )
    yield Kernel(name="sum of squares", call=lambda: sum_of_squares(gradients), bytes=4 * size)


def kernels(device: str, copy: float, small: bool, compiled: bool) -> dict[str, Any]:
    """Share of the copy's bytes a second, and the time of torch.compile's kernel against it, for each width."""
    found: dict[str, Any] = {}
    for rows, columns in [(64, 48)] if small else [(32768, 1024), (16384, 2048), (8192, VOCABULARY)]:
        of_width = found.setdefault(f"{rows} x {columns}", {})
        for kernel in kernel_table(rows, columns, device):
            if columns > 8192 and not kernel.name.startswith("cross-entropy"):
                continue
            seconds = seconds_of(kernel.call, device)
            row = {"microseconds": 1e6 * seconds, "of_copy": kernel.bytes / seconds / 1e9 / copy}
            if kernel.composition is not None and compiled:
                row["torch_compile_against_it"] = seconds_of(torch.compile(kernel.composition), device) / seconds
            of_width[kernel.name] = row
            print(f"  {kernel.name}, {rows} x {columns}: {row}", flush=True)
    return found


def steps(device: str, ceiling: float, table: Mapping[str, Model]) -> dict[str, Any]:
    """Tokens a second and share of the product's FLOP/s of whole training steps in bf16, dropout 0.1."""
    found: dict[str, Any] = {}
    for name, model in table.items():
        batch = batch_of(model.shape)
        contestant = ours(
            model.shape, batch, dropout=0.1, precision=PrecisionConfig(bf16=True), device=torch.device(device)
        )
        seconds = seconds_of(contestant.step, device, repetitions=8)
        one = model.shape
        flops = pretraining_flops(
            one.model(0.1),
            tokens=one.tokens,
            squared_lengths=one.samples * one.sequence**2,
            masked=len(batch.masked_positions),
            samples=one.samples,
        )
        found[name] = {
            "samples": model.shape.samples,
            "tokens_per_second": model.shape.tokens / seconds,
            "tflops_per_second": flops / seconds / 1e12,
            "of_product": flops / seconds / 1e12 / ceiling,
        }
        del contestant
        gc.collect()
        if device == "cuda":
            found[name]["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if model.peers and importlib.util.find_spec("transformers"):
            found[name]["transformers"] = best_peer(model.shape, device)
        print(f"  {name}: {found[name]}", flush=True)
    return found


def best_peer(shape: Shape, device: str) -> dict[str, float]:
    """transformers in bf16 at its best batch: samples and tokens a second."""
    best: dict[str, float] = {}
    for samples in (shape.samples, 2 * shape.samples, shape.samples // 2):
        tried = Shape(**{**vars(shape), "samples": max(1, samples)})
        try:
            step = peer_step(
                tried, batch_of(tried), dropout=0.1, weights=torch.bfloat16, autocast=False, device=torch.device(device)
            )
            rate = tried.tokens / seconds_of(step, device, repetitions=5)
        except torch.cuda.OutOfMemoryError:
            continue
        finally:
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        if rate > best.get("tokens_per_second", 0.0):
            best = {"samples": tried.samples, "tokens_per_second": rate}
    return best


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-NAME.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    output = options.output or RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    table, found = models(options.small), read_results(output)
    found["machine"] = {"device": name, "torch": torch.__version__, "kernels": vars(cuda.kernels())}
    if "ceilings" in options.parts or "ceilings" not in found:
        found["ceilings"] = ceilings(options.device, table, options.small)
        print(f"ceilings: {found['ceilings']}", flush=True)
    if "kernels" in options.parts:
        compiled = options.device == "cuda"
        found["kernels"] = kernels(options.device, found["ceilings"]["copy"], options.small, compiled)
    if "steps" in options.parts:
        found["steps"] = steps(options.device, found["ceilings"]["product"], table)
    write_results(output, found)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
