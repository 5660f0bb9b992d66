"""Ranks that join a job and then sleep, or one of them dies: `watched.py HOSTS HOW RANK`.

HOSTS: a letter for the host of each rank, as in "aab". HOW: end, die, (stay) away, or stall: all wait as for a device,
and the rank has begun one collective less. Without communicators: only the watching threads can notice. Silence is
shortened from 40 s to 3 s, the time between pulses from 2 s to 0.5 s.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

from megatron.errors import main_guard
from megatron.mpu import job as jobs
from megatron.mpu import watch
from megatron.mpu.pulse import Operation

if __name__ == "__main__":
    hosts, how, chosen = sys.argv[1:]
    rank = int(os.environ["RANK"])
    host = hosts[rank]
    this_process = jobs.this_process
    jobs.this_process = lambda: dataclasses.replace(this_process(), host=host, machine=host)
    watch.SILENT_SECONDS = 3.0
    watch.interval_of = lambda size: 0.5

    def main() -> None:
        """Join, and do what was asked for."""
        if how == "away" and rank == int(chosen):
            time.sleep(3.0)
            os._exit(0)
        job = jobs.join_job(timeout_minutes=0.03 if how in ("away", "stall") else 1.0, startup_timeout_minutes=1.0)
        assert job is not None
        assert job.consult("sum", str(rank), lambda values: str(sum(map(int, values)))) == "3"
        if how == "die":
            if rank == int(chosen):
                time.sleep(1.0)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60.0)
        if how == "stall":
            job.activity.asynchronous = True
            job.activity.phase = "step 5"
            job.activity.operation = Operation("all-reduce", "data", (0, 1, 2), 9, False, time.monotonic())
            job.activity.teams["data"] = 0
            job.activity.entered["data"] = 8 if rank == int(chosen) else 9
            time.sleep(60.0)
        job.leave()

    main_guard(main)
