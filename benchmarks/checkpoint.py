"""Saving and loading a model of 110 M parameters with Adam's state (1.3 GB) against torch.save and torch's dcp.

    python benchmarks/checkpoint.py --folder FOLDER_ON_A_DISK

Interleaved rounds in one process; only durable times count (fsync included), and reads find the page cache warm for all
of them. "blocked": until training could go on. "copy": into memory that is kept, what no asynchronous save goes below.
"disk": the same bytes written directly from two threads, what no save goes below.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from megatron.checkpoint.store import Pruning, begin_save, finish_save, load_tensors, write_own
from megatron.config import (
    CheckpointConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    PretrainConfig,
)
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece, ShardSpec, pieces_of
from megatron.training.model import build, new_optimizer
from megatron.training.saving import Saver
from megatron.training.state import Progress

RESULTS = Path(__file__).resolve().parent / "results" / "checkpoint.json"
MODEL = ModelConfig(num_layers=12, hidden_size=768, num_attention_heads=12, ffn_hidden_size=3072,
                    max_position_embeddings=512, vocab_size=30522)  # fmt: skip


def divided(pieces: list[Piece], tensor: int) -> list[list[Piece]]:
    """The same tensors as `tensor` ranks would hold them: matrices by rows, or by columns where rows are few."""
    ranks: list[list[Piece]] = [[] for _ in range(tensor)]
    for piece in pieces:
        shape = piece.global_shape
        dim = 1 if len(shape) == 2 and shape[1] > shape[0] else 0
        block = shape[dim] // tensor
        for rank in range(tensor):
            size = block if rank < tensor - 1 else shape[dim] - block * (tensor - 1)
            part = piece.tensor.narrow(dim, rank * block, size).contiguous()
            spec = ShardSpec(global_shape=shape, dim=dim, start=rank * block, size=size)
            ranks[rank] += list(pieces_of(piece.name, spec, tuple(part.shape), part.view(-1)))
    return ranks


def rest(state: dict[str, torch.Tensor]) -> None:
    """Wait for the disk, and touch all that is saved, as the step before a save does."""
    os.sync()
    for tensor in state.values():
        tensor.mul_(1)


def timed(call: Callable[[], Any], state: dict[str, torch.Tensor]) -> float:
    """Seconds, from a disk at rest."""
    rest(state)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def durable_torch_save(state: dict[str, torch.Tensor], path: Path) -> None:
    """torch.save and fsync."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def write_directly(content: mmap.mmap, path: Path) -> None:
    """Write past the page cache, two pieces at a time, and fsync; `content` is whole blocks."""
    path.unlink(missing_ok=True)  # to overwrite a file would be faster
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    view, piece = memoryview(content), 16 << 20

    def write(start: int) -> None:
        os.pwrite(handle, view[start : start + piece], start)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, range(0, len(view), piece)))
    os.fsync(handle)
    os.close(handle)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    context = ParallelContext.single()
    model = build(MODEL, ParallelConfig(), PrecisionConfig(), 1, context)
    optimizer = new_optimizer(model.chunks, OptimizerConfig(lr=1e-4), PrecisionConfig(), ParallelConfig(), context)
    for moment in (*optimizer.exp_avg, *optimizer.exp_avg_sq):
        moment.normal_()
    weights, moments = optimizer.weights(), optimizer.moments()
    state = {piece.name: piece.tensor for piece in (*weights, *moments)}
    size = sum(tensor.nbytes for tensor in state.values())
    saver = Saver(PretrainConfig(model=MODEL, checkpoint=CheckpointConfig(save=str(folder / "ours"))), {}, {}, context)
    files = {"config.json": b"{}\n", "train_state.json": b"{}\n"}
    for step, parts in ((1, [weights]), (2, divided(weights, 4))):
        _save_by_ranks(folder / "load", step, parts, files, context)
    seconds: dict[str, list[float]] = {}
    content = mmap.mmap(-1, -(-size // 4096) * 4096)
    room = torch.frombuffer(content, dtype=torch.uint8)

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    def copy() -> None:
        start = 0
        for tensor in state.values():
            room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            start += tensor.nbytes

    for number in range(options.rounds + 1):  # the first warms
        note("copy", timed(copy, state))
        note("disk", timed(lambda: write_directly(content, folder / "direct"), state))
        note("torch.save + fsync", timed(lambda: durable_torch_save(state, folder / "torch.pt"), state))
        note("dcp.save", timed(lambda: dcp.save(state, checkpoint_id=folder / "dcp"), state))
        note("ours", timed(lambda: saver.save(Progress(step=1), optimizer, in_background=False), state))
        rest(state)
        started = time.perf_counter()
        future = dcp.async_save(state, checkpoint_id=folder / "dcp_async")
        note("dcp.async_save, blocked", time.perf_counter() - started)
        future.result()
        note("dcp.async_save, durable", time.perf_counter() - started)
        rest(state)
        started = time.perf_counter()
        saver.save(Progress(step=2), optimizer, in_background=True)
        note("ours in the background, blocked", time.perf_counter() - started)
        saver.finish()
        note("ours in the background, durable", time.perf_counter() - started)
        note("torch.load", timed(lambda: torch.load(folder / "torch.pt", weights_only=True), state))
        for step, name in ((1, "load, same layout (weights)"), (2, "load, from 4 tensor-parallel ranks (weights)")):
            path = folder / "load" / f"iter_{step:07d}"
            note(name, timed(lambda path=path: load_tensors(path, "model", weights, context=context), state))
        if number == 0:
            seconds.clear()
    saver.close()
    dist.destroy_process_group()
    shutil.rmtree(folder)
    table = {name: [min(values), statistics.median(values), max(values)] for name, values in seconds.items()}
    for name, (low, median, high) in table.items():
        print(f"{name:45} {median:6.3f} s [{low:.3f}..{high:.3f}]  {size / median / 1e6:7,.0f} MB/s")
    ours, theirs = table["ours"][1], table["torch.save + fsync"][1]
    print(f"durable: {theirs / ours:.2f}x torch.save, {table['dcp.save'][1] / ours:.2f}x dcp.save")
    print(f"durable: {table['disk'][1] / ours:.2f} of the disk's speed")
    blocked = table["ours in the background, blocked"][1] / table["dcp.async_save, blocked"][1]
    print(f"blocked: {blocked:.2f} of dcp.async_save")
    found = {"machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}", "bytes": size,
             "seconds": {name: [round(value, 4) for value in values] for name, values in table.items()}}  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _save_by_ranks(
    folder: Path, step: int, parts: list[list[Piece]], files: dict[str, bytes], context: ParallelContext
) -> None:
    temporary = begin_save(folder, step, context)
    written: dict[str, Any] = {}
    for rank, pieces in enumerate(parts):
        written |= write_own(temporary, pieces, [], rank)[0]
    finish_save(temporary, written, "", files=files, context=context, pruning=Pruning())


if __name__ == "__main__":
    main()
