#!/usr/bin/env python
"""Check an installation, and under torchrun the links between its nodes.

    python tools/doctor.py
    torchrun --nnodes 2 ... tools/doctor.py      # the flags of your training run

A line a check, with what to do where one fails. Exit code 0 if training can run, 1 if not.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from megatron.mpu.context import ParallelContext

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = "megatron-clue"
ROOM = 64 << 20
"""Bytes of /dev/shm below which ranks reduce through small parts; containers have as much by default."""
LOOPBACK = """
import datetime, os, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
tensor = torch.full((1000,), float(dist.get_rank() + 1))
dist.all_reduce(tensor)
assert tensor.eq(3.0).all()
dist.destroy_process_group()  # left to the end of the process, its threads now and then abort it
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A line of the table. advice: what to do, where it is not ok. Only "fails" makes the installation unusable."""

    name: str
    state: Literal["ok", "note", "fails"]
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:5}  {self.name:18}  {self.detail}" + (f"\n{'':27}-> {self.advice}" if self.advice else "")


def requirement_checks(requirements: Sequence[str]) -> Iterator[Check]:
    """Installed versions against lines like `torch>=2.11` or `tomli>=2.0; python_version < "3.11"`."""
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        old = re.search(r'python_version < "(\d+)\.(\d+)"', marker)
        if "extra ==" in marker or (old and sys.version_info >= (int(old[1]), int(old[2]))):
            continue
        name, _, least = text.strip().partition(">=")
        advice = f"make install, or pip install '{text.strip()}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=name, state="fails", detail=f"not installed; needs {least} or newer", advice=advice)
            continue
        if _numbers(version) < _numbers(least):
            yield Check(name=name, state="fails", detail=f"{version}; needs {least} or newer", advice=advice)
        else:
            yield Check(name=name, state="ok", detail=version)


def python_checks() -> Iterator[Check]:
    """Python and the packages that setup.py asks for."""
    detail = f"{platform.python_version()}, {platform.machine()}, {platform.system()}"
    yield Check(name="Python", state="ok", detail=detail)
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        advice = "make install, then .venv/bin/python tools/doctor.py"
        yield Check(name=DISTRIBUTION, state="fails", detail="not installed in this Python", advice=advice)
        return
    yield from requirement_checks(requirements)
    for name in ("transformers", "tensorboard", "wandb", "apex"):
        try:
            detail = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            detail = "not installed (optional)"
        yield Check(name=name, state="note" if "optional" in detail else "ok", detail=detail)


def helper_checks() -> Iterator[Check]:
    """The compiled helpers: there, of these sources, right, and with OpenMP."""
    name = "megatron._C"
    try:
        import numpy as np

        compiled = importlib.import_module(name)
        image = sorted(compiled.permute(100, 7, np.arange(100)))
    except Exception as error:
        yield Check(name=name, state="fails", detail=f"{type(error).__name__}: {error}", advice="make install")
        return
    sources = [path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.*")]
    file = str(compiled.__file__)
    if image != list(range(100)):
        yield Check(name=name, state="fails", detail=f"{file} computes wrong results", advice="make clean install")
    elif sources and os.stat(file).st_mtime < max(sources):
        yield Check(name=name, state="note", detail=f"{file} is older than csrc/", advice="make install")
    else:
        yield Check(name=name, state="ok", detail=os.path.relpath(file, ROOT) if sources else file)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    if getattr(compiled, "openmp", False):
        yield Check(name="OpenMP", state="ok", detail=f"compiled in; OMP_NUM_THREADS is {threads}")
    else:
        advice = "install a compiler with OpenMP and run make clean install, for faster steps on a CPU"
        yield Check(name="OpenMP", state="note", detail="not compiled in: helpers use one thread", advice=advice)


def machine_checks() -> Iterator[Check]:
    """Processors and shared memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check(name="processors", state="ok", detail=f"{cores} usable")
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        advice = "none needed: ranks of this host use gloo instead, more slowly"
        yield Check(name="shared memory", state="note", detail="no /dev/shm", advice=advice)
        return
    free = room.f_bavail * room.f_frsize
    enough = free >= ROOM
    yield Check(
        name="shared memory",
        state="ok" if enough else "note",
        detail=f"{free / 2**20:,.0f} MiB free in /dev/shm",
        advice="" if enough else "give the container more (docker run --shm-size 1g); reduction on CPUs is slower",
    )


def device_checks() -> Iterator[Check]:
    """GPUs and NCCL, or why there are none."""
    import torch

    if not torch.cuda.is_available():
        present = shutil.which("nvidia-smi") is not None or ctypes.util.find_library("cuda") is not None
        detail = f"none usable; training runs on the CPU (torch {torch.__version__})"
        advice = "install a CUDA build of PyTorch, and check nvidia-smi" if present else ""
        yield Check(name="GPU", state="note", detail=detail, advice=advice)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {capability}"
        try:
            product = torch.ones(64, 64, device=f"cuda:{index}").mm(torch.ones(64, 64, device=f"cuda:{index}"))
            assert product.sum().item() == 64**3
        except Exception as error:
            advice = "the driver or the PyTorch build does not go with this GPU: compare nvidia-smi and torch's CUDA"
            yield Check(name=f"GPU {index}", state="fails", detail=f"{detail}: {error}", advice=advice)
            continue
        old = properties.major < 8
        advice = "use --fp16 or fp32: bf16 is slow before capability 8.0" if old else ""
        yield Check(name=f"GPU {index}", state="note" if old else "ok", detail=detail, advice=advice)
    from megatron.ops import cuda

    kernels = cuda.kernels()
    detail = "loaded" if kernels.loaded else f"{kernels.why}; torch's own operations are used, which are slower"
    yield Check(name="CUDA kernels", state="ok" if kernels.loaded else "note", detail=detail)
    if torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield Check(name="NCCL", state="ok", detail=f"{version}, CUDA {torch.version.cuda}")
    else:
        advice = "install PyTorch's own build; several GPUs need NCCL"
        yield Check(name="NCCL", state="fails", detail="not in this PyTorch", advice=advice)


def loopback_checks() -> Iterator[Check]:
    """Two processes of this machine that sum over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LOOPBACK], env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = []
    for process in ranks:
        try:
            _, error = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            error = "no answer within 90 s"
        if process.returncode != 0:
            errors.append((error.strip().splitlines() or ["?"])[-1])
    seconds = time.perf_counter() - started
    if errors:
        advice = "check the loopback interface, and GLOO_SOCKET_IFNAME if it is set"
        yield Check(name="gloo loopback", state="fails", detail=errors[0], advice=advice)
    else:
        yield Check(name="gloo loopback", state="ok", detail=f"all-reduce of 2 processes, {seconds:.1f} s with start")


def link_checks(context: ParallelContext, mebibytes: int) -> Iterator[Check]:
    """Between ranks: an all-reduce of all, then transfers from each node to the next. Collective; in bytes a second.

    The bandwidth of an all-reduce is that of the links it needs, 2 (n - 1) / n times its bytes, as in nccl-tests.
    """
    import torch

    size = context.world.size
    small = torch.zeros(1, device=context.device)
    large = torch.zeros(mebibytes << 18, device=context.device)
    latency = _seconds(lambda: context.world.all_reduce_(small), context, 20)
    seconds = _seconds(lambda: context.world.all_reduce_(large), context, 5)
    bandwidth = 2 * (size - 1) / size * large.numel() * 4 / seconds
    yield Check(
        name="all ranks",
        state="ok",
        detail=f"{size} ranks over {context.backend}: all-reduce {latency * 1e6:,.0f} us, {_rate(bandwidth)}",
    )
    assert context.job is not None
    first: dict[str, int] = {}
    for rank, process in enumerate(context.job.processes):
        first.setdefault(process.host, rank)
    hosts = list(first)
    pairs = [(a, hosts[(i + 1) % len(hosts)]) for i, a in enumerate(hosts)] if len(hosts) > 2 else [tuple(hosts)]
    rates = []
    for a, b in pairs if len(hosts) > 1 else []:
        latency = _transfer(context, small, first[a], first[b], 20)
        rates.append((a, b, latency, large.numel() * 4 / _transfer(context, large, first[a], first[b], 5)))
    usual = statistics.median(rate for *_, rate in rates) if rates else 0.0
    for a, b, latency, rate in rates:
        slow = rate < 0.5 * usual
        advice = f"half as fast as the others, or slower ({_rate(usual)}): check cable, port, interface" if slow else ""
        detail = f"{latency * 1e6:,.0f} us there and back, {_rate(rate)}"
        yield Check(name=f"{a} - {b}", state="note" if slow else "ok", detail=detail, advice=advice)


def _seconds(call: Callable[[], object], context: ParallelContext, times: int) -> float:
    """The median time of a collective, on the slowest rank."""
    import torch

    def measured() -> float:
        context.world.barrier()
        started = time.perf_counter()
        call()
        if context.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    measured()
    median = torch.tensor([statistics.median(measured() for _ in range(times))], device=context.device)
    return float(context.world.all_reduce_(median, "max").item())


def _transfer(context: ParallelContext, tensor: object, a: int, b: int, times: int) -> float:
    """The time for a tensor from rank a to b and one back, in seconds; halved for large ones it is one way's."""
    import torch

    assert isinstance(tensor, torch.Tensor)
    world = context.world

    def there_and_back() -> None:
        if world.rank == a:
            world.start_send(tensor, b).wait()
            world.start_receive(tensor, b).wait()
        elif world.rank == b:
            world.start_receive(tensor, a).wait()
            world.start_send(tensor, a).wait()

    seconds = _seconds(there_and_back, context, times)
    return seconds / 2 if tensor.numel() > 1 else seconds


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 2**30:.2f} GiB/s"


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: "2.13.0+cpu" is (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def print_checks(checks: Iterator[Check]) -> bool:
    """Print checks as they come; whether none fails. What a check itself cannot do is a failure too."""
    usable = True
    try:
        for check in checks:
            usable = usable and check.state != "fails"
            print(check, flush=True)
    except ImportError as error:
        print(Check(name="import", state="fails", detail=str(error), advice="make install"), flush=True)
        return False
    return usable


def check_links(mebibytes: int, timeout_minutes: float) -> None:
    """Under torchrun: agreement of all ranks, then their links; the main rank prints.

    Raises `UserError` where ranks have other code or versions, and `JobError` with the ranks that do not come.
    """
    from megatron.config import ParallelConfig
    from megatron.mpu.context import ParallelContext
    from megatron.training.agreement import check_installation

    parallel = ParallelConfig(distributed_timeout_minutes=timeout_minutes)
    with ParallelContext.from_environment(parallel, agree=check_installation) as context:
        checks = link_checks(context, mebibytes)
        if context.is_main:
            print(Check(name="agreement", state="ok", detail="all ranks have the same code and versions"), flush=True)
            print_checks(checks)
        else:
            list(checks)


def main() -> None:
    """Check this machine on one rank of it, then the links."""
    parser = argparse.ArgumentParser(
        prog="doctor.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the transfers that are timed")
    parser.add_argument("--timeout-minutes", type=float, default=2.0, help="for ranks to arrive, and for a transfer")
    options = parser.parse_args()
    usable = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{socket.gethostname()}:", flush=True)
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        groups = [python_checks, helper_checks, machine_checks, device_checks, *([loopback_checks] if alone else [])]
        for group in groups:
            usable &= print_checks(group())
    if usable and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        check_links(options.mebibytes, options.timeout_minutes)
    if not usable:
        print("doctor.py: something that training needs is broken, see above", file=sys.stderr)
        sys.exit(1)
    if os.environ.get("RANK", "0") == "0":
        print("usable")


if __name__ == "__main__":
    if str(ROOT) not in sys.path:  # works where the package is not installed
        sys.path.insert(0, str(ROOT))
    from megatron.errors import main_guard

    main_guard(main)
