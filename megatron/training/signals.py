"""Requests from outside: SIGTERM and the time limit stop a run, SIGUSR1 saves it. All ranks agree before they act."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType

from megatron.mpu.context import ParallelContext


@dataclass
class StopFlag:
    """What this process was asked for. deadline: `time.monotonic()` value of --exit-duration-in-mins; save: a
    checkpoint now, and to go on; whoever saves clears it."""

    deadline: float | None = None
    signalled: bool = False
    save: bool = False

    @property
    def asked(self) -> bool:
        """Whether this rank wants to stop."""
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def agreed(self, context: ParallelContext) -> bool:
        """Whether any rank wants to stop; a collective, so all ranks stop at the same step."""
        return context.world.any(self.asked, context.device)


def watch_signals(minutes: float | None, context: ParallelContext) -> StopFlag:
    """A flag that SIGTERM (and SIGINT, which torchrun passes on) sets, or the end of `minutes`; SIGUSR1 saves."""
    flag = StopFlag(deadline=None if minutes is None else time.monotonic() + 60.0 * minutes)

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag.signalled:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        flag.signalled = True

    def handle_save(number: int, frame: FrameType | None) -> None:
        flag.save = True

    signal.signal(signal.SIGUSR1, handle_save)
    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if context.job is not None:
        context.job.watch.watch_signals()
    return flag
