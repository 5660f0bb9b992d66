"""How the processes of a job meet and agree before they have communicators: through torchrun's key-value store.

The store (`torch.distributed.TCPStore`) is torchrun's own where torchrun started the job, so it outlives every rank;
started by other means, rank 0 hosts it.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch.distributed as dist

from megatron.errors import JobError, UserError
from megatron.mpu.group import Activity
from megatron.mpu.pulse import Process, plural, this_process
from megatron.mpu.watch import (
    GRACE_SECONDS,
    NO_VERDICT,
    SILENT_SECONDS,
    VERDICT,
    Watch,
    first_pulse,
    interval_of,
    pulse_key,
    read_all,
)

LATER = 15.0
"""Seconds that others wait longer than the rank that knows who is missing, so that its message comes first."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The processes of a job. Times in seconds.

    processes: by rank. timeout: of a collective; startup_timeout: of a phase of start-up. activity: what this process
    is doing, which the groups write and the watching thread reads.
    """

    rank: int
    size: int
    store: dist.Store = field(repr=False)
    processes: tuple[Process, ...] = field(repr=False)
    timeout: float
    startup_timeout: float
    activity: Activity = field(repr=False)
    watch: Watch = field(repr=False)

    def consult(self, name: str, value: str, decide: Callable[[Sequence[str]], str]) -> str:
        """The decision that rank 0 takes from the values of all ranks, in order of rank; the same on all ranks.

        Collective, once for each name. Raises `JobError` with the ranks that give no value within the start-up limit.
        """
        return _consult(self.store, name, value, decide, rank=self.rank, size=self.size, limit=self.startup_timeout)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of start-up, which ends on all ranks together.

        The watching thread ends the job with the names of those who have not finished within the limit.
        """
        self.activity.begin_phase(f"start-up: {name}")
        yield
        self.activity.arrived = True
        self._meet(f"phase/{self.activity.phase_number}")
        self.activity.phase_since = math.inf

    def leave(self, reason: str = "") -> None:
        """Stop watching, and tell the others why this process ends; reason "": it is done, and all wait for all."""
        if not reason:
            self.activity.begin_phase("the end")
            self._meet("end")
        self.watch.stop(reason)
        self.watch.stay_for_others(self.store, GRACE_SECONDS + 3 * interval_of(self.size) if reason else LATER)

    def _meet(self, key: str) -> None:
        """Wait for all ranks; the watching thread ends the process where that is in vain."""
        try:
            if self.store.add(f"{key}/ranks", 1) == self.size:
                self.store.set(f"{key}/all", "1")
            self.store.wait([f"{key}/all"], datetime.timedelta(seconds=self.startup_timeout + LATER))
        except RuntimeError as error:
            failure = f"{self.activity.phase} was not left by all ranks: {str(error).splitlines()[0]}"
            raise JobError(self.activity.explain(failure)) from error


def join_job(*, timeout_minutes: float, startup_timeout_minutes: float) -> Job | None:
    """Meet the other processes that torchrun started; None for a process alone.

    Raises `JobError` with the ranks that do not arrive in time, and `UserError` where torchrun's environment is not
    whole.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    try:
        rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is {size}, but the environment is not torchrun's ({error}): start with torchrun"
        ) from None
    # To come takes seconds, for torchrun starts all processes at the same time.
    limit = 60.0 * min(timeout_minutes, startup_timeout_minutes)
    connection = _connect(host, port, hosts_it=rank == 0, limit=limit)
    # Where torchrun starts the ranks again, the store may be the one of the last attempt.
    attempt = f"megatron/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(attempt, connection)
    me = this_process()
    store.set(pulse_key(rank), first_pulse())
    if rank == 0:
        store.set(VERDICT, NO_VERDICT)
    listed = _consult(store, "join", json.dumps(asdict(me)), _list_processes, rank=rank, size=size, limit=limit)
    processes = tuple(Process(**values) for values in json.loads(listed))
    activity = Activity()
    watching = connection.clone()  # type: ignore[attr-defined]  # a connection of its own: one blocks while it waits
    watching.set_timeout(datetime.timedelta(seconds=SILENT_SECONDS))
    watch = Watch(
        rank=rank,
        processes=processes,
        store=dist.PrefixStore(attempt, watching),
        own_store=store,
        address=f"{host}:{port}",
        activity=activity,
        timeout=60.0 * timeout_minutes,
        startup_timeout=60.0 * startup_timeout_minutes,
    )
    watch.start()
    return Job(
        rank=rank,
        size=size,
        store=store,
        processes=processes,
        timeout=60.0 * timeout_minutes,
        startup_timeout=60.0 * startup_timeout_minutes,
        activity=activity,
        watch=watch,
    )


def _connect(host: str, port: int, *, hosts_it: bool, limit: float) -> dist.TCPStore:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return dist.TCPStore(
            host,
            port,
            None,
            hosts_it and not agent,
            datetime.timedelta(seconds=limit),
            wait_for_workers=False,  # it could not say who is missing
            multi_tenant=not agent,
        )
    except RuntimeError as error:
        raise JobError(
            f"no connection to the job's store at {host}:{port} within {limit:.0f} s ({str(error).splitlines()[0]}): "
            "check MASTER_ADDR, MASTER_PORT and the firewall"
        ) from None


def _consult(
    store: dist.Store,
    name: str,
    value: str,
    decide: Callable[[Sequence[str]], str],
    *,
    rank: int,
    size: int,
    limit: float,
) -> str:
    keys = [f"{name}/{other}" for other in range(size)]
    store.set(keys[rank], value)
    present: Sequence[int] = range(size)
    if rank == 0:
        if _wait(store, keys, limit):
            answer = "+" + decide([value.decode() for value in read_all(store, keys)])
        else:
            present = [other for other, key in enumerate(keys) if store.check([key])]
            answer = (
                f"-{plural(sorted(set(range(size)) - set(present)))} did not arrive at the start-up phase {name} "
                f"within {limit / 60:g} minutes; there: {plural(present)}"
            )
        store.set(name, answer)
    elif _wait(store, [name], limit + LATER):
        answer = store.get(name).decode()
    else:
        answer = f"-rank 0 did not arrive at the start-up phase {name} within {limit / 60:g} minutes"
    if answer.startswith("-"):
        # The store may end with rank 0.
        deadline = time.monotonic() + LATER
        read = store.add(f"{name}/read", 1)
        while rank == 0 and read < len(present) and time.monotonic() < deadline:
            time.sleep(0.02)
            read = store.add(f"{name}/read", 0)
        raise JobError(answer[1:])
    return answer[1:]


def _wait(store: dist.Store, keys: list[str], seconds: float) -> bool:
    try:
        store.wait(keys, datetime.timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def _list_processes(values: Sequence[str]) -> str:
    return json.dumps([json.loads(value) for value in values])
