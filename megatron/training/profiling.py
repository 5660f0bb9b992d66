"""`--profile`: PyTorch's profiler over some steps, a trace and a table of where their time goes for some ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from megatron.checkpoint.store import check_writable
from megatron.config import LoggingConfig
from megatron.errors import UserError
from megatron.files import replace_file
from megatron.mpu.context import ParallelContext
from megatron.mpu.spans import STEP, span
from megatron.training.step_times import step_times, times_table


def check_profile(options: LoggingConfig, context: ParallelContext) -> None:
    """Make the folder of --profile. Raises `UserError` on all ranks if that fails, and for ranks that are not there."""
    if options.profile is None:
        return
    missing = [rank for rank in options.profile_ranks if not 0 <= rank < context.world.size]
    if missing:
        raise UserError(f"--profile-ranks {missing[0]}: the ranks of this run are 0 to {context.world.size - 1}")
    check_writable(Path(options.profile), context, flag="--profile")


class StepProfiler:
    """Profiles the steps that the options name, as far as the run does them; does nothing without --profile.

    say: a line for the reader of the console. pause: seconds that the last step was held up before and after its work.
    """

    def __init__(self, options: LoggingConfig, context: ParallelContext, say: Callable[[str], None]) -> None:
        self.pause = 0.0
        self._options, self._context, self._say = options, context, say
        self._steps: list[int] = []
        self._written = options.profile is None
        self._profiler: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the work of a step, its batch included. The end of the last one writes. Collective."""
        options, device = self._options, self._context.device
        self.pause = 0.0
        if self._written or not options.profile_step_start <= number <= options.profile_step_end:
            yield
            return
        began = time.perf_counter()
        if not self._steps and self._context.rank in options.profile_ranks:
            on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profiler.start()
        self.pause = time.perf_counter() - began
        try:
            with span(STEP):
                yield
                if device.type == "cuda" and self._profiler is not None:
                    torch.cuda.synchronize(device)
        except BaseException:
            self._stop()
            raise
        self._steps.append(number)
        if number == options.profile_step_end:
            began = time.perf_counter()
            self.finish()
            self.pause += time.perf_counter() - began

    def finish(self) -> None:
        """Write what was profiled, if that has not happened yet. A failure costs the profile, not the run. Collective.
        """
        if self._written:
            return
        self._written = True
        first, last = self._options.profile_step_start, self._options.profile_step_end
        if not self._steps:
            self._say(f"profile: this run has done none of the steps {first} to {last}; nothing is written")
            return
        profiler = self._stop()
        report = "" if profiler is None else self._write(profiler)
        for text in self._context.world.gather_objects(report):
            if text:
                self._say(text)

    def _stop(self) -> profile | None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler

    def _write(self, profiler: profile) -> str:
        """Write the files of this rank; what there is to say of them."""
        rank, device = self._context.rank, self._context.device
        times = step_times(profiler.events(), on_gpu=device.type == "cuda")
        name = Path(self._options.profile or "") / f"rank{rank}"
        table = "\n".join(
            [f"profile of rank {rank}, steps {self._steps[0]} to {self._steps[-1]}:", *times_table(times)]
        )
        temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp.json.gz")
        try:
            profiler.export_chrome_trace(str(temporary))
            os.replace(temporary, name.with_name(f"{name.name}.trace.json.gz"))
            replace_file(name.with_name(f"{name.name}.txt"), f"{table}\n".encode())
        except (OSError, RuntimeError) as error:
            return f"warning: the profile of rank {rank} cannot be written to {name.parent}: {error}"
        finally:
            temporary.unlink(missing_ok=True)
        return f"{table}\n  {name}.trace.json.gz is for https://ui.perfetto.dev or chrome://tracing"
