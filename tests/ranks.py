"""Run a function on several gloo ranks of this machine. Ranks come from a fork server that has torch loaded."""

from __future__ import annotations

import multiprocessing
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


def run_ranks(layout: Layout, function: Callable[..., Any], *arguments: Any, seconds: float = 120.0) -> list[Any]:
    """`function(context, *arguments)` on every rank of a layout; the results in order of rank.

    A `UserError` of a rank is its result; any other failure, or a rank that does not answer, fails the caller.
    """
    if layout.world_size == 1:
        return [_guarded(function, ParallelContext.single(), arguments)]
    with tempfile.TemporaryDirectory() as folder:
        results = _context.Queue()
        store = str(Path(folder) / "store")
        ranks = [
            _context.Process(target=_rank, args=(rank, layout, store, results, function, arguments), daemon=True)
            for rank in range(layout.world_size)
        ]
        for process in ranks:
            process.start()
        answers: dict[int, Any] = {}
        try:
            while len(answers) < layout.world_size:
                rank, value, failure = results.get(timeout=seconds)
                assert failure is None, f"rank {rank} failed:\n{failure}"
                answers[rank] = value
        finally:
            for process in ranks:
                process.join(5.0)
                process.kill()
    return [answers[rank] for rank in range(layout.world_size)]


def _rank(rank: int, layout: Layout, store: str, results: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=layout.world_size)
        context = ParallelContext.of_process_group(layout, torch.device("cpu"))
        value = _guarded(function, context, arguments)
        context.world.barrier()
        results.put((rank, value, None))
        context.close()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def _guarded(function: Callable[..., Any], context: ParallelContext, arguments: tuple[Any, ...]) -> Any:
    try:
        return function(context, *arguments)
    except UserError as error:
        return error
