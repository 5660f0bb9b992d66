"""Run a function on several gloo ranks of this machine. Ranks come from a fork server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import runpy
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "megatron.model", "tests.ranks"])


def run_ranks(
    layout: Layout,
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = 120.0,
    shared_memory: bool = True,
    device: str = "cpu",
) -> list[Any]:
    """`function(context, *arguments)` on every rank of a layout; the results in order of rank.

    shared_memory: whether ranks may reduce through it, or only through gloo. device: all ranks share it. A `UserError`
    of a rank is its result; any other failure, or a rank that does not answer, fails the caller.
    """
    if layout.world_size == 1:
        return [_guarded(function, ParallelContext.single(device), arguments)]
    with tempfile.TemporaryDirectory() as folder:
        results = _context.Queue()
        store = str(Path(folder) / "store")
        ranks = [
            _context.Process(
                target=_rank,
                args=(rank, layout, store, shared_memory, device, results, function, arguments),
                daemon=True,
            )
            for rank in range(layout.world_size)
        ]
        for process in ranks:
            process.start()
        answers: dict[int, Any] = {}
        try:
            while len(answers) < layout.world_size:
                rank, value, failure = results.get(timeout=seconds)
                assert failure is None, f"rank {rank} failed:\n{failure}"
                answers[rank] = pickle.loads(value)
        finally:
            for process in ranks:
                process.join(5.0)
                process.kill()
    return [answers[rank] for rank in range(layout.world_size)]


def _rank(
    rank: int,
    layout: Layout,
    store: str,
    shared_memory: bool,
    device: str,
    results: Any,
    function: Any,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=layout.world_size)
        context = ParallelContext.of_process_group(layout, torch.device(device), shared_memory=shared_memory)
        value = _guarded(function, context, arguments)
        context.world.barrier()
        # As bytes: a tensor would travel as a handle that dies with this process.
        results.put((rank, pickle.dumps(value), None))
        context.close()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def _guarded(function: Callable[..., Any], context: ParallelContext, arguments: tuple[Any, ...]) -> Any:
    try:
        return function(context, *arguments)
    except UserError as error:
        return error


def run_script(
    path: Path, argv: list[str], size: int, output: Path, *, seconds: float = 120.0
) -> list[tuple[int, str]]:
    """A script under torchrun's environment on `size` ranks; exit code and stderr of each. output: a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = [output / f"stderr.{rank}" for rank in range(size)]
    ranks = [
        _context.Process(target=_script, args=(path, argv, rank, size, port, errors[rank]), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    hanging = [rank for rank, process in enumerate(ranks) if process.exitcode is None]
    for process in ranks:
        process.kill()
    assert not hanging, f"ranks {hanging} of {path.name} did not end"
    return [(process.exitcode or 0, error.read_text()) for process, error in zip(ranks, errors, strict=True)]


def _script(path: Path, argv: list[str], rank: int, size: int, port: int, error: Path) -> None:
    os.dup2(os.open(error, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = [str(path), *argv]
    runpy.run_path(str(path), run_name="__main__")
