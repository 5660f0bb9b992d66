"""A thread that sees to it that a job ends when it is broken, everywhere and with a reason.

Every few seconds a rank writes its pulse to the job's store, reads the pulse of the next rank of its host, and looks
whether there is a verdict: why the job ends, written once by whoever finds out first. The first rank of a host also
reads the pulses of the next host. So each pulse is read by another and the traffic of a rank does not grow with the
job. The thread runs while the main thread is blocked in a collective, and it ends the process where that cannot.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import torch.distributed as dist

from megatron.errors import program_name
from megatron.mpu.group import Activity
from megatron.mpu.pulse import Process, Pulse, ended_report, gone_report, hang_report, phase_report, stall_report

VERDICT, NO_VERDICT = "verdict", "-"
SILENT_SECONDS = 40.0
"""A host that gives no sign of life for so long is lost. Processes of the own host are looked at instead."""
GRACE_SECONDS = 5.0
"""For ranks to end by themselves after another one: with an error that all agreed on they do."""
EXIT_SECONDS = 10.0
"""For the main thread to end after it has got the verdict."""
MARGIN_SECONDS = 5.0
"""By which the thread is later than the time limit of the communicators: their errors know more."""
KEYS_AT_ONCE = 512


def pulse_key(rank: int) -> str:
    """Where a rank's pulse is in the store."""
    return f"pulse/{rank}"


def first_pulse() -> str:
    """The pulse of a rank that has just come."""
    return Pulse(phase="start-up").encoded()


def read_all(store: dist.Store, keys: Sequence[str]) -> list[bytes]:
    """The values of many keys that are there."""
    parts = (keys[first : first + KEYS_AT_ONCE] for first in range(0, len(keys), KEYS_AT_ONCE))
    return [value for part in parts for value in store.multi_get(list(part))]


def interval_of(size: int) -> float:
    """Seconds between the pulses of a rank: 2, and longer from 512 ranks on, so that the store gets 500 a second."""
    return min(max(2.0, size / 256), 10.0)


def watched_by(rank: int, processes: Sequence[Process]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranks that a rank looks after: the next of its host, and for the first of a host all of the next host."""
    hosts: dict[tuple[str, str], list[int]] = {}
    for other, process in enumerate(processes):
        hosts.setdefault((process.host, process.machine), []).append(other)
    order = list(hosts.values())
    at = next(i for i, ranks in enumerate(order) if rank in ranks)
    own = order[at]
    neighbour = own[(own.index(rank) + 1) % len(own)]
    next_host = order[(at + 1) % len(order)] if rank == own[0] and len(order) > 1 else []
    return (() if neighbour == rank else (neighbour,)), tuple(next_host)


class Watch:
    """The watching thread of a process. Times in seconds.

    store: a connection of the thread's own; own_store: that of the main thread. timeout: of a collective.
    """

    def __init__(
        self,
        *,
        rank: int,
        processes: Sequence[Process],
        store: dist.Store,
        own_store: dist.Store,
        address: str,
        activity: Activity,
        timeout: float,
        startup_timeout: float,
    ) -> None:
        self._rank, self._processes, self._activity = rank, processes, activity
        self._store, self._own_store, self._address = store, own_store, address
        self._timeout, self._startup_timeout = timeout, startup_timeout
        self._interval = interval_of(len(processes))
        self._neighbour, self._next_host = watched_by(rank, processes)
        self._main = threading.main_thread().ident
        self._seen: dict[int, tuple[bytes, float]] = {}  # last pulse of a watched rank, and when it was new
        self._beat = 0
        self._terminated: float | None = None
        self._asked: float | None = None
        self._patience = 2 * MARGIN_SECONDS + 3 * self._interval  # for the verdict of the rank that reports first
        self._main_ends: float | None = None
        self._stopping = False
        self._read_end, self.wake_up_fd = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self.wake_up_fd, False)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; failed operations ask here for the reason."""
        self._activity.explain = self.explain
        self._thread.start()

    def stop(self, reason: str) -> None:
        """End the thread, and say to the others why this process ends; "": because all is done."""
        self._stopping = True
        os.write(self.wake_up_fd, b"\0")
        self._thread.join(MARGIN_SECONDS)
        with contextlib.suppress(RuntimeError):  # nobody is there to read it
            self._own_store.set(pulse_key(self._rank), self._pulse(ended=reason).encoded())

    def explain(self, failure: str) -> str:
        """Why an operation of the main thread failed: the job's verdict, with this rank's own view below it.

        Takes seconds where it must be waited for who is silent. The process is to end with it.
        """
        self._main_ends = math.inf  # the thread leaves the message to the main thread
        try:
            verdict = self._settle(self._own_store, failure)
            self.stay_for_others(self._own_store, 2 * self._interval)
        except RuntimeError:
            return f"{failure}\n  {self._store_is_lost()}"
        finally:
            self._main_ends = time.monotonic()
        return verdict if verdict == failure else f"{verdict}\n  noticed here as: {failure}"

    def watch_signals(self) -> None:
        """Let the thread see signals, which Python's handlers cannot while the main thread is blocked."""
        signal.set_wakeup_fd(self.wake_up_fd, warn_on_full_buffer=False)

    def stay_for_others(self, store: dist.Store, seconds: float) -> None:
        """Rank 0 ends last: the store ends with it, or with its torchrun, and the others must have read the reason."""
        with contextlib.suppress(RuntimeError):  # the store is gone already, and so are those who needed it
            store.set(f"left/{self._rank}", "1")
            deadline = time.monotonic() + seconds
            others = list(range(len(self._processes))) if self._rank == 0 else []
            while others and time.monotonic() < deadline:
                me = self._processes[0]
                others = [r for r in others if not self._processes[r].has_died(me) and not store.check([f"left/{r}"])]
                time.sleep(0.01)

    # ---- The thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._tick()
                self._sleep()
        except RuntimeError:
            if not self._stopping:
                self._end(self._store_is_lost())

    def _sleep(self) -> None:
        woken = select.select([self._read_end], [], [], self._interval)[0]
        if woken and signal.SIGTERM in os.read(self._read_end, 4096) and self._terminated is None:
            self._terminated = time.monotonic()

    def _tick(self) -> None:
        self._beat += 1
        self._store.set(pulse_key(self._rank), self._pulse().encoded())
        if self._main_ends is not None and time.monotonic() - self._main_ends >= EXIT_SECONDS:
            os._exit(1)
        watched = self._neighbour + self._next_host
        verdict, *pulses = self._store.multi_get([VERDICT, *map(pulse_key, watched)])
        if verdict.decode() != NO_VERDICT:
            self._end(verdict.decode())
            return
        now = time.monotonic()
        for rank, pulse in zip(watched, pulses, strict=True):
            if self._seen.get(rank, (b"", 0.0))[0] != pulse:
                self._seen[rank] = pulse, now
        self._look_after_others(now)
        self._look_after_self(now)

    def _look_after_others(self, now: float) -> None:
        def silent(ranks: Sequence[int]) -> float:
            """Seconds without a sign of life of any of them."""
            return min((now - self._seen[rank][1] for rank in ranks), default=0.0)

        for rank in self._neighbour + self._next_host:
            ended = Pulse.decoded(self._seen[rank][0]).ended
            late = ended and now - self._seen[rank][1] >= GRACE_SECONDS
            if late or (ended is None and self._has_died(rank)):
                self._find_out()
                return
        if self._next_host and silent(self._next_host) >= SILENT_SECONDS:
            pulses = {rank: Pulse.decoded(self._seen[rank][0]) for rank in self._next_host}
            gone = [rank for rank, pulse in pulses.items() if pulse.ended is None]
            if gone and not any(self._processes[rank].is_alive(self._processes[self._rank]) for rank in gone):
                self._publish(
                    self._store,
                    gone_report(gone, pulses, self._processes, silent_seconds=silent(gone)),
                )

    def _look_after_self(self, now: float) -> None:
        operation = self._activity.operation
        waited = now - operation.since if operation.inside else 0.0
        hangs = waited >= self._timeout + MARGIN_SECONDS or self._is_stalled(now)
        if hangs and self._main_ends is None:
            self._find_out()
        phase, began = self._activity.phase_number, self._activity.phase_since
        if now - began >= self._startup_timeout and self._reports_first(self._store, f"phase {phase}"):
            pulses = self._all_pulses(self._store)
            report = phase_report(phase, self._activity.phase, self._startup_timeout, pulses, self._processes)
            self._publish(self._store, report)
        # Asked to stop, but blocked: say in what, while there is time, since the launcher will kill.
        if self._terminated is not None and now - self._terminated >= 20.0 and waited >= 20.0:
            self._terminated = None
            if self._reports_first(self._store, "terminated"):
                what = f"SIGTERM came 20 s ago, but {operation} has not ended for {waited:.0f} s"
                _print(hang_report(what, operation, self._all_pulses(self._store), self._processes))

    def _is_stalled(self, now: float) -> bool:
        """Whether nothing happens between ranks; they wait for a device outside of operations. Not in start-up."""
        activity = self._activity
        waits = activity.asynchronous and not activity.operation.inside and activity.phase_since == math.inf
        return waits and now - activity.operation.since >= self._timeout

    # ---- Finding the reason ------------------------------------------------------------------------------------

    def _settle(self, store: dist.Store, failure: str) -> str:
        """The verdict: that of the rank that reports first, or else what this rank finds out itself.

        failure: what happened to this rank, which is the verdict if no better reason is found.
        """
        if not self._reports_first(store, "reporter"):
            deadline = time.monotonic() + self._patience
            while time.monotonic() < deadline:
                verdict = store.get(VERDICT).decode()
                if verdict != NO_VERDICT:
                    return verdict
                time.sleep(0.2)
        return self._publish(store, self._reason(store, failure))

    def _find_out(self) -> None:
        """The same for the thread, which must not wait for another's verdict: its pulse would stop."""
        now = time.monotonic()
        first = self._asked is None and self._reports_first(self._store, "reporter")
        self._asked = now if self._asked is None else self._asked
        if first or now - self._asked >= self._patience:
            reason = self._reason(self._store, "")
            if reason:  # else it has ended meanwhile
                self._publish(self._store, reason)

    def _reason(self, store: dist.Store, failure: str) -> str:
        operation = self._activity.operation
        waited = time.monotonic() - operation.since
        first = self._all_raw_pulses(store)
        deadline = time.monotonic() + 3 * self._interval
        while True:
            raw = self._all_raw_pulses(store)
            pulses = dict(enumerate(map(Pulse.decoded, raw)))
            gone = [rank for rank, pulse in pulses.items() if pulse.ended is None and self._has_died(rank)]
            if gone:
                return gone_report(gone, pulses, self._processes, silent_seconds=None)
            ended = {rank: pulse.ended for rank, pulse in pulses.items() if pulse.ended}
            if ended:
                return ended_report(ended, self._processes)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        silent = [rank for rank, pulse in enumerate(raw) if pulse == first[rank] and rank != self._rank]
        me = self._processes[self._rank]
        gone = [rank for rank in silent if not self._processes[rank].is_alive(me)]
        if gone:
            return gone_report(gone, pulses, self._processes, silent_seconds=3 * self._interval)
        if self._is_stalled(time.monotonic()):
            return stall_report(waited, pulses, self._processes)
        late = waited >= 0.9 * self._timeout
        if not late and not failure:
            return ""
        what = f"{operation} has not ended within {waited:.0f} s" if late else failure
        return hang_report(what, operation, pulses, self._processes, silent=silent)

    def _has_died(self, rank: int) -> bool:
        if not self._processes[rank].has_died(self._processes[self._rank]):
            return False
        # It may have ended in order between its pulse and the look at it.
        return Pulse.decoded(self._store.get(pulse_key(rank))).ended is None

    def _reports_first(self, store: dist.Store, what: str) -> bool:
        return store.add(f"reports/{what}", 1) == 1

    def _publish(self, store: dist.Store, reason: str) -> str:
        return store.compare_set(VERDICT, NO_VERDICT, reason).decode()

    def _all_pulses(self, store: dist.Store) -> dict[int, Pulse]:
        return dict(enumerate(map(Pulse.decoded, self._all_raw_pulses(store))))

    def _all_raw_pulses(self, store: dist.Store) -> list[bytes]:
        return read_all(store, [pulse_key(rank) for rank in range(len(self._processes))])

    def _pulse(self, *, ended: str | None = None) -> Pulse:
        activity, operation = self._activity, self._activity.operation
        return Pulse(
            beat=self._beat,
            phase=activity.phase,
            phase_number=activity.phase_number,
            arrived=activity.arrived,
            operation=str(operation) if operation.name else "",
            inside=operation.inside,
            seconds=time.monotonic() - operation.since,
            entered=dict(activity.entered),
            teams=dict(activity.teams),
            at=_place(sys._current_frames().get(self._main or 0)),
            ended=ended,
        )

    # ---- Ending ------------------------------------------------------------------------------------------------

    def _store_is_lost(self) -> str:
        return f"the job's store at {self._address} is gone: torchrun on its first node, or rank 0, has ended"

    def _end(self, verdict: str) -> None:
        """End the process, unless the main thread is about to do so with the same message."""
        if self._main_ends is None:
            _print(f"the job ends: {verdict}")
            self.stay_for_others(self._store, 2 * self._interval)
            os._exit(1)


def _print(message: str) -> None:
    # Past Python's buffers, whose locks the main thread may hold.
    os.write(2, f"{program_name()}: {message}\n".encode())


def _place(frame: FrameType | None) -> str:
    """Where a thread is: the innermost frame, and the innermost of this package or of the command."""
    places: list[str] = []
    while frame is not None:
        code = frame.f_code
        ours = f"{os.sep}megatron{os.sep}" in code.co_filename or frame.f_globals.get("__name__") == "__main__"
        if ours or not places:
            places.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}")
        if ours:
            break
        frame = frame.f_back
    return ", called from ".join(places)
