"""What a rank tells the others about itself, and what is made of it when something is wrong. No torch, no store.

A hang is explained as NCCL's flight recorder does it: ranks count the collectives of each group, and who has counted
less than those who wait has not arrived.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

MOST_NAMES = 8
"""Ranks that a report describes one by one."""


class Operation(NamedTuple):
    """A collective or a transfer that a rank has begun. Replaced as a whole, so that a reader sees one moment.

    awaited: ranks of the world that it cannot end without. number: how many collectives of the group this rank has
    begun, this one included; 0 for a transfer, of which members have different numbers. since: `time.monotonic()` of
    the beginning, or of the end where it is over.
    """

    name: str = ""
    group: str = ""
    awaited: tuple[int, ...] = ()
    number: int = 0
    inside: bool = False
    since: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} in the {self.group} group (ranks {ranges(self.awaited)})"


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where a rank runs. started: its start in clock ticks; machine: kernel and process table; "" where unknown."""

    host: str
    pid: int
    started: int
    machine: str

    def has_died(self, observer: Process) -> bool:
        """Whether it can be seen from `observer` that this process is no more. False where it cannot be seen."""
        if not self.machine or self.machine != observer.machine:
            return False
        state, started = _state_of(self.pid)
        return state in ("", "Z", "X") or started != self.started

    def is_alive(self, observer: Process) -> bool:
        """Whether it can be seen from `observer` that this process exists."""
        return bool(self.machine) and self.machine == observer.machine and not self.has_died(observer)


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a rank says every few seconds. Times in seconds.

    beat: counts, so that two pulses differ. phase: what the rank is at, and the number of the start-up phase; arrived:
    whether it waits at its end. operation: what it last began in a group, and how long it is inside, or out, of it;
    entered: collectives begun, by group; teams: first ranks of these groups. at: where its main thread is. ended: why
    the process ended, "" where all was done, None while it goes on.
    """

    beat: int = 0
    phase: str = ""
    phase_number: int = 0
    arrived: bool = False
    operation: str = ""
    inside: bool = False
    seconds: float = 0.0
    entered: dict[str, int] = field(default_factory=dict)
    teams: dict[str, int] = field(default_factory=dict)
    at: str = ""
    ended: str | None = None

    def encoded(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decoded(cls, data: bytes) -> Pulse:
        """From `encoded`."""
        return cls(**json.loads(data))

    def whereabouts(self) -> str:
        """What the rank was doing, in words."""
        if self.inside:
            return f"inside {self.operation} for {self.seconds:.0f} s"
        last = f"; its last operation, {self.operation}, ended {self.seconds:.0f} s before" if self.operation else ""
        return f"in {self.phase}" + (f", at {self.at}" if self.at else "") + last


def this_process() -> Process:
    """The process that asks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        machine = ""
    return Process(host=socket.gethostname(), pid=os.getpid(), started=_state_of(os.getpid())[1], machine=machine)


def ranges(ranks: Iterable[int]) -> str:
    """Numbers in order as "0-3, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" if b > a + 1 else f"{a}, {b}" for a, b in runs)


def plural(ranks: Sequence[int]) -> str:
    """ "rank 3" or "ranks 3-5"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)}"


def names(ranks: Sequence[int], processes: Sequence[Process]) -> str:
    """Ranks with hosts and process numbers, the first few one by one."""
    few = [f"rank {rank} (host {processes[rank].host}, process {processes[rank].pid})" for rank in ranks[:MOST_NAMES]]
    return ", ".join(few) + _more(ranks)


def gone_report(
    gone: Sequence[int], pulses: Mapping[int, Pulse], processes: Sequence[Process], *, silent_seconds: float | None
) -> str:
    """Ranks that died, or that have been silent for some seconds, and what they were doing last."""
    what = "died" if silent_seconds is None else f"gave no sign of life for {silent_seconds:.0f} s"
    lines = [f"{names(gone, processes)} {what}"]
    lines += [f"last pulse of rank {rank}: {pulses[rank].whereabouts()}" for rank in gone[:MOST_NAMES]]
    return "\n  ".join(lines)


def ended_report(ended: Mapping[int, str], processes: Sequence[Process]) -> str:
    """Ranks that ended with an error of their own."""
    lines = [f"{names([rank], processes)} ended: {why}" for rank, why in sorted(ended.items())[:MOST_NAMES]]
    return "\n  ".join(lines) + _more(sorted(ended))


def hang_report(
    what: str,
    operation: Operation,
    pulses: Mapping[int, Pulse],
    processes: Sequence[Process],
    *,
    silent: Sequence[int] = (),
) -> str:
    """Who is inside an operation that does not end, and who has not arrived and where they are instead.

    what: the first line. silent: ranks that exist, but do not speak.
    """
    inside: list[int] = []
    missing: list[int] = []
    for rank in operation.awaited:
        pulse = pulses[rank]
        if operation.number:
            arrived = pulse.entered.get(operation.group, 0) >= operation.number
        else:
            arrived = pulse.inside and f"the {operation.group} group" in pulse.operation
        (inside if arrived else missing).append(rank)
    lines = [what]
    if inside:
        lines.append(f"arrived: {plural(inside)}")
    for rank in missing[:MOST_NAMES]:
        state = "is stopped or stuck; was last seen " if rank in silent else ""
        lines.append(f"not there: {names([rank], processes)}, {state}{pulses[rank].whereabouts()}")
    if len(missing) > MOST_NAMES:
        lines.append(f"not there either: {plural(missing[MOST_NAMES:])}")
    if not missing:
        lines.append("all its ranks arrived: look at the network or the device between them")
    return "\n  ".join(lines)


def stall_report(seconds: float, pulses: Mapping[int, Pulse], processes: Sequence[Process]) -> str:
    """Who has begun fewer collectives than another member of one of its groups, where nobody begins any more."""
    most: dict[tuple[str, int], int] = {}
    for pulse in pulses.values():
        for group, first in pulse.teams.items():
            most[group, first] = max(most.get((group, first), 0), pulse.entered[group])
    lines = [f"no operation of ranks has begun or ended for {seconds:.0f} s"]
    behind = [
        (rank, [group for group, first in pulse.teams.items() if pulse.entered[group] < most[group, first]])
        for rank, pulse in sorted(pulses.items())
    ]
    behind = [(rank, groups) for rank, groups in behind if groups]
    for rank, groups in behind[:MOST_NAMES]:
        where = f"{names([rank], processes)}, {pulses[rank].whereabouts()}"
        lines.append(f"behind the others in the {', '.join(groups)} group{'s' * (len(groups) > 1)}: {where}")
    if len(behind) > MOST_NAMES:
        lines.append(f"behind too: {plural([rank for rank, _ in behind[MOST_NAMES:]])}")
    if not behind:
        lines.append("all ranks have begun the same operations: look at the network or the devices")
    return "\n  ".join(lines)


def phase_report(
    number: int, name: str, limit: float, pulses: Mapping[int, Pulse], processes: Sequence[Process]
) -> str:
    """Who has not finished a start-up phase, and where they are."""
    late = [rank for rank, pulse in sorted(pulses.items()) if (pulse.phase_number, pulse.arrived) < (number, True)]
    waiting = [rank for rank in late if pulses[rank].inside]
    missing = [rank for rank in late if not pulses[rank].inside] or late
    lines = [
        f"{name} was not finished by all ranks within {limit / 60:g} minutes (--startup-timeout-minutes)",
        *(f"not finished: {names([rank], processes)}, {pulses[rank].whereabouts()}" for rank in missing[:MOST_NAMES]),
    ]
    if waiting and waiting != missing:
        lines.append(f"waiting for others: {plural(waiting)}")
    if len(missing) > MOST_NAMES:
        lines.append(f"nor by {plural(missing[MOST_NAMES:])}")
    return "\n  ".join(lines)


def _more(ranks: Sequence[int]) -> str:
    return f" and {len(ranks) - MOST_NAMES} more ({plural(ranks[MOST_NAMES:])})" if len(ranks) > MOST_NAMES else ""


def _state_of(pid: int) -> tuple[str, int]:
    """State letter and start time of a process of this machine; "" for one that does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold anything
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
