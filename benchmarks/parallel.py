"""Data and tensor parallelism of two CPU processes against one, and against PyTorch's DDP, interleaved in one run.

    python benchmarks/parallel.py               # about three minutes; pins rank r to core r

The model has 12 layers of width 256 and 21,128 rows of vocabulary; a step has 8 samples of 128 tokens a process (data
parallel) or in all (one process, tensor parallel). A process has one thread. Times are of whole training steps.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.random import dropout_keys
from megatron.mpu.sharding import initialize
from megatron.training.model import build, call, new_optimizer
from megatron.training.step import train_step

RESULTS = Path(__file__).resolve().parent / "results" / "parallel.json"
SAMPLES, SEQUENCE, VOCABULARY = 8, 128, 21128
MODEL = ModelConfig(
    num_layers=12, hidden_size=256, num_attention_heads=4, ffn_hidden_size=1024, max_position_embeddings=SEQUENCE,
    vocab_size=VOCABULARY,
)  # fmt: skip


def batch_of(first: int) -> Batch:
    """Eight full samples with 15 % masked tokens."""
    draw = np.random.default_rng(first)
    masked = np.sort(np.concatenate([row * SEQUENCE + draw.permutation(SEQUENCE)[:19] for row in range(SAMPLES)]))
    return Batch(
        tokens=draw.integers(0, VOCABULARY, (SAMPLES, SEQUENCE)),
        token_types=np.zeros((SAMPLES, SEQUENCE), dtype=np.int64),
        lengths=np.full(SAMPLES, SEQUENCE),
        masked_positions=masked,
        masked_labels=draw.integers(0, VOCABULARY, len(masked)),
        sop_labels=draw.integers(0, 2, SAMPLES),
        samples=np.arange(first, first + SAMPLES),
    )


def ours(context: ParallelContext, precision: PrecisionConfig) -> Callable[[], float]:
    """A step of the engine in a layout; returns the loss."""
    parallel = ParallelConfig(
        tensor_model_parallel_size=context.layout.tensor, sequence_parallel=context.sequence_parallel
    )
    model = build(MODEL, parallel, precision, 1, context)
    optimizer = new_optimizer(model.chunks, OptimizerConfig(lr=1e-4), precision, parallel, context)
    batch = batch_of(context.data.rank * SAMPLES)

    def step() -> float:
        totals = train_step(model, optimizer, [batch], 1e-4, seed=1).totals
        return totals.mlm / totals.masked

    return step


def ddp(context: ParallelContext, view: bool, precision: PrecisionConfig) -> Callable[[], float]:
    """The same model under PyTorch's DistributedDataParallel and fused AdamW; in bf16 its weights are bf16, too."""
    alone = ParallelContext.single()

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertForPreTraining(MODEL, alone)
            initialize(self.model, 1)

        def forward(self, batch: Batch) -> torch.Tensor:
            samples = torch.from_numpy(batch.samples)
            keys = dropout_keys(1, samples, sequence=SEQUENCE, heads=MODEL.num_attention_heads, context=alone)
            sums = call(self.model, batch, alone, keys, None)
            return sums.mlm / len(batch.masked_positions) + sums.sop / len(batch.samples)

    module = Loss().to(torch.bfloat16 if precision.bf16 else torch.float32)
    size = {"bucket_cap_mb": 100, "gradient_as_bucket_view": True} if view else {}
    wrapped = DistributedDataParallel(module, **size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    batch = batch_of(context.rank * SAMPLES)

    def step() -> float:
        optimizer.zero_grad(set_to_none=False)
        loss = wrapped(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def run_rank(rank: int, store: str, steps: int, rounds: int, bf16: bool, results: Any) -> None:
    """Two ranks that measure in turn: one alone while the other waits, then both."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    device, precision = torch.device("cpu"), PrecisionConfig(bf16=bf16)
    data = ParallelContext.of_process_group(Layout(data=2), device)
    tensor = ParallelContext.of_process_group(Layout(tensor=2), device)
    over_gloo = ParallelContext.of_process_group(Layout(data=2), device, shared_memory=False)
    tensor_over_gloo = ParallelContext.of_process_group(Layout(tensor=2), device, shared_memory=False)
    cases: dict[str, tuple[Callable[[], float], int]] = {
        "one process": (ours(ParallelContext.single(), precision), 1),
        "data 2": (ours(data, precision), 2),
        "data 2, gloo": (ours(over_gloo, precision), 2),
        "tensor 2": (ours(tensor, precision), 1),
        "tensor 2, sequence parallel": (ours(replace(tensor, sequence_parallel=True), precision), 1),
        "tensor 2, gloo": (ours(tensor_over_gloo, precision), 1),
        "DDP 2": (ddp(data, False, precision), 2),
        "DDP 2, bucket views": (ddp(data, True, precision), 2),
        "two processes without exchange": (ours(ParallelContext.single(), precision), 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for name, (step, _) in cases.items():  # warm
        for _ in range(2):
            if name != "one process" or rank == 0:
                step()
        dist.barrier()
    for _ in range(rounds):
        for name, (step, _) in cases.items():
            dist.barrier()
            if name != "one process" or rank == 0:
                started = time.perf_counter()
                for _ in range(steps):
                    step()
                seconds[name].append((time.perf_counter() - started) / steps)
            dist.barrier()
    if rank == 0:
        results.put({name: (seconds[name], batches) for name, (_, batches) in cases.items()})
    dist.barrier()


def measure(steps: int, rounds: int, bf16: bool) -> dict[str, Any]:
    """Medians of the rounds, tokens a second, and ratios to one process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=run_rank, args=(rank, store, steps, rounds, bf16, results)) for rank in range(2)
        ]
        for process in ranks:
            process.start()
        found = results.get(timeout=1800)
        for process in ranks:
            process.join()
    alone = statistics.median(found["one process"][0])
    table: dict[str, Any] = {}
    for name, (seconds, batches) in found.items():
        median = statistics.median(seconds)
        table[name] = {
            "milliseconds": [round(1e3 * value, 1) for value in (min(seconds), median, max(seconds))],
            "tokens_per_second": round(batches * SAMPLES * SEQUENCE / median),
            "speedup": round(batches * alone / median, 3),
        }
        low, middle, high = table[name]["milliseconds"]
        print(
            f"{name:32} {middle:8.1f} ms [{low:.0f}..{high:.0f}]  {table[name]['tokens_per_second']:6,} tokens/s  "
            f"{table[name]['speedup']:.2f}x",
            flush=True,
        )
    return table


def main() -> None:
    """Measure fp32 and bf16, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; medians are over them")
    parser.add_argument("--formats", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}",
        "load_before": os.getloadavg()[0],
    }
    for name in options.formats:
        print(f"{name}:")
        found[name] = measure(options.steps, options.rounds, name == "bf16")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
