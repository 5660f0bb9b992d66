"""Several fine-tuning runs side by side, each a process of its own; those that are finished are not run again.

Every run holds a lock until it ends, whatever becomes of the command that started it: a command that was killed and
started again waits for the runs that it left behind, and two commands on one folder share the work.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.arguments import flags_of
from megatron.checkpoint import json_bytes
from megatron.errors import UserError
from megatron.files import take_lock, write_file
from megatron.tasks.config import FinetuneConfig
from megatron.training.records import clock

METRICS, DESCRIPTION, LOG = "dev_metrics.json", "run.json", "log.txt"
STATUS_SECONDS = 60
PATIENCE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of finetune_clue.py. identity: all that its numbers depend on. results: what it leaves in its folder."""

    name: str
    config: FinetuneConfig
    identity: dict[str, Any]
    results: tuple[str, ...] = (METRICS,)

    @property
    def folder(self) -> Path:
        return Path(self.config.source.output_dir)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one run may be at a time. devices: of CUDA, as CUDA_VISIBLE_DEVICES has them; none for the CPU."""

    devices: tuple[str, ...]
    threads: int
    processes: int

    def __str__(self) -> str:
        return f"GPU {','.join(self.devices)}" if self.devices else f"{self.threads * self.processes} CPU cores"


@dataclass(frozen=True)
class Running:
    """A job that was started. process: None where a process of another command is at it."""

    job: Job
    slot: Slot
    process: subprocess.Popen[bytes] | None
    started: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended without its results, and the last lines of its log."""

    job: Job
    code: int
    tail: str

    def __str__(self) -> str:
        return f"{self.job.name} ended with exit code {self.code}; {self.job.folder / LOG} ends with\n{self.tail}"


def digest(paths: Sequence[Path]) -> str:
    """A hash of the contents of files, in their order. Raises `UserError` for one that cannot be read."""
    found = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    found.update(block)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        found.update(b"\0end\0")
    return found.hexdigest()


def short_hash(identity: dict[str, Any]) -> str:
    """Tells runs in one folder apart that differ in something else than their names say."""
    return hashlib.sha256(json_bytes(identity)).hexdigest()[:8]


def read_metrics(job: Job) -> dict[str, Any] | None:
    """The dev scores of a job that is finished, else None: all results are there, and made by this very job."""
    try:
        metrics = json.loads((job.folder / METRICS).read_bytes())
        same = json.loads((job.folder / DESCRIPTION).read_bytes()) == json.loads(json_bytes(job.identity))
    except (OSError, ValueError):
        return None
    whole = isinstance(metrics, dict) and all((job.folder / name).exists() for name in job.results)
    return metrics if whole and same else None


def find_slots(jobs: int | None, processes: int) -> list[Slot]:
    """Places for runs of so many processes each: GPUs where there are some, else shares of the CPU's cores.

    jobs: how many, more than GPUs to share them; None for one a GPU, and one in all on a CPU. Raises `UserError` for
    more processes than GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    devices = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    if devices and processes > len(devices):
        raise UserError(f"--processes {processes}: there are only {len(devices)} GPUs")
    jobs = jobs or max(1, len(devices) // processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // (jobs * processes))
    groups = [tuple(devices[start : start + processes]) for start in range(0, len(devices), processes)]
    groups = [group for group in groups if len(group) == processes] or [()]
    return [Slot(devices=groups[number % len(groups)], threads=threads, processes=processes) for number in range(jobs)]


def run_jobs(
    jobs: Sequence[Job], slots: Sequence[Slot], script: Path, finished: Callable[[Job, dict[str, Any]], str]
) -> list[Failure]:
    """Run those of the jobs that are not finished, as many at a time as there are slots; the failures.

    script: finetune_clue.py. finished(job, metrics): called after each, gives its result in words. However this ends,
    the runs it started end, too, save on SIGKILL.
    """
    left = collections.deque(job for job in jobs if read_metrics(job) is None)
    total, free = len(left), list(slots)
    print(f"{len(jobs)} runs, {len(jobs) - total} of them finished earlier", flush=True)
    if not left:
        return []
    print(f"{len(slots)} at a time: {' | '.join(map(str, slots))}", flush=True)
    running: list[Running] = []
    failures: list[Failure] = []
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    told = time.monotonic()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while left or running:
            while left and free:
                running.append(_start(left.popleft(), free.pop(0), script))
            time.sleep(0.1)
            for each in [each for each in running if _ended(each)]:
                running.remove(each)
                free.append(each.slot)
                metrics = read_metrics(each.job)
                if metrics is None and each.process is None:
                    left.appendleft(each.job)  # whoever was at it was stopped
                    continue
                elapsed = time.monotonic() - each.started
                if metrics is None:
                    failures.append(_failure(each))
                    line = f"FAILED {failures[-1]}"
                else:
                    seconds[each.job.config.task.task].append(elapsed)
                    line = f"{each.job.name}: {finished(each.job, metrics)}"
                count = total - len(left) - len(running)
                remaining = clock(_remaining(left, running, seconds, len(slots))) if seconds else "unknown"
                print(f"[{count}/{total}] {line} | {clock(elapsed)} | ETA {remaining}", flush=True)
            if time.monotonic() - told > STATUS_SECONDS:
                told = time.monotonic()
                for each in running:
                    print(f"  {each.job.name}: {_tail(each.job.folder / LOG, 1).strip()}", flush=True)
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)
    return failures


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _start(job: Job, slot: Slot, script: Path) -> Running:
    """Start a job anew in its emptied folder, unless a process that holds its lock is at it."""
    folder = job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a+b") as lock:
        holder = take_lock(lock.fileno())
        if holder:
            print(f"{job.name} is being run already ({holder}); waiting for it", flush=True)
            return Running(job, slot, None, time.monotonic())
        shutil.rmtree(folder, ignore_errors=True)
        write_file(folder / DESCRIPTION, json_bytes(job.identity))
        environment = {"OMP_NUM_THREADS": str(slot.threads), **os.environ}
        if slot.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.devices)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={slot.processes}"]
        with open(folder / LOG, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, *(launcher if slot.processes > 1 else []), str(script), *flags_of(job.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],  # held on by the run
            )
    return Running(job, slot, process, time.monotonic())


def _ended(running: Running) -> bool:
    if running.process is not None:
        return running.process.poll() is not None
    folder = running.job.folder
    with open(folder.with_name(f".{folder.name}.lock"), "a+b") as lock:
        return not take_lock(lock.fileno())


def _stop(running: Sequence[Running]) -> None:
    """End the runs that this command started; those that do not heed it are killed."""
    processes = [each.process for each in running if each.process is not None]
    for process in processes:
        process.terminate()
    until = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(running: Running) -> Failure:
    code = 0 if running.process is None else running.process.returncode
    return Failure(job=running.job, code=code, tail=_tail(running.job.folder / LOG, 8))


def _tail(log: Path, count: int) -> str:
    """The last lines of a log, indented."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-count:])


def _remaining(left: Sequence[Job], running: Sequence[Running], seconds: dict[str, list[float]], slots: int) -> float:
    """Seconds until all is done, if runs of a task take as long as those before, and others the mean of all."""
    every = [value for values in seconds.values() for value in values]

    def expected(job: Job) -> float:
        known = seconds.get(job.config.task.task) or every
        return sum(known) / len(known)

    now = time.monotonic()
    begun = sum(max(0.0, expected(each.job) - (now - each.started)) for each in running)
    return (begun + sum(map(expected, left))) / slots
