"""The processes of a run: who I am, which groups I am in, on which device.

Only this module and `megatron.mpu.job` read torchrun's environment.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from megatron.config import ParallelConfig
from megatron.errors import JobError, UserError, reason_of
from megatron.mpu.group import Activity, Group, Traffic
from megatron.mpu.job import Job, join_job
from megatron.mpu.layout import Layout, layout_of_world
from megatron.mpu.shared_memory import open_shared_group

NCCL_LATER_MINUTES = 2.0


def launched_processes() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """This process's place in the layout, its groups and its device. Handed to whatever depends on the layout.

    embedding: the first and the last stage, which both hold the word table; of size 1 elsewhere. sequence_parallel:
    whether what is replicated over the tensor group outside its linear layers is divided along the sequence instead.
    job: the processes that torchrun started, where it did. As a context manager it is closed at the end of the block;
    after an error the other ranks are told the reason instead.
    """

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    world: Group = field(default_factory=lambda: Group(name="world"))
    tensor: Group = field(default_factory=lambda: Group(name="tensor"))
    data: Group = field(default_factory=lambda: Group(name="data"))
    pipeline: Group = field(default_factory=lambda: Group(name="pipeline"))
    embedding: Group = field(default_factory=lambda: Group(name="embedding"))
    sequence_parallel: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    job: Job | None = field(default=None, repr=False)

    @classmethod
    def single(cls, device: str = "cpu") -> ParallelContext:
        """One process alone; torch.distributed is not used."""
        return cls(device=torch.device(device))

    @classmethod
    def from_environment(cls, parallel: ParallelConfig, *, agree: Callable[[Job], None]) -> ParallelContext:
        """The context of a process started by torchrun, or alone where torchrun did not start it.

        agree: compares what must be the same on all ranks before anything depends on it; raises on all of them. Raises
        `UserError` if the sizes do not divide the number of processes, and `JobError` with the ranks that do not come.
        """
        cuda = torch.cuda.is_available() and parallel.distributed_backend != "gloo"
        if parallel.distributed_backend == "nccl" and not cuda:
            raise UserError("--distributed-backend nccl needs a CUDA device; use gloo")
        world_size = launched_processes()
        layout = layout_of_world(
            world_size,
            tensor=parallel.tensor_model_parallel_size,
            pipeline=parallel.pipeline_model_parallel_size,
        )
        if world_size == 1:
            return cls.single("cuda" if cuda else "cpu")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        # NCCL's own watchdog aborts the process: it comes after ours, which can say why.
        minutes = parallel.distributed_timeout_minutes
        timeout = datetime.timedelta(minutes=minutes + (NCCL_LATER_MINUTES if cuda else 0.0))
        job = join_job(timeout_minutes=minutes, startup_timeout_minutes=parallel.startup_timeout_minutes)
        assert job is not None  # there are several processes
        job.activity.asynchronous = cuda
        try:
            agree(job)
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=dist.PrefixStore("groups", job.store),
                rank=job.rank,
                world_size=job.size,
                timeout=timeout,
            )
            return cls.of_process_group(
                layout, device, sequence_parallel=parallel.sequence_parallel, timeout=timeout, job=job
            )
        except UserError as error:
            job.leave(reason_of(error))
            raise
        except RuntimeError as error:
            failure = f"the process groups could not be made: {reason_of(error)}"
            raise JobError(job.watch.explain(failure)) from error

    @classmethod
    def fake(cls, layout: Layout, rank: int, *, sequence_parallel: bool = False) -> ParallelContext:
        """The context of any rank of a layout on one process: PyTorch's fake process group, tensors without numbers.

        Collectives return at once. There must be no default process group yet; `close` ends this one.
        """
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=rank, world_size=layout.world_size, store=FakeStore())
        return cls.of_process_group(layout, torch.device("meta"), sequence_parallel=sequence_parallel)

    @classmethod
    def of_process_group(
        cls,
        layout: Layout,
        device: torch.device,
        *,
        sequence_parallel: bool = False,
        timeout: datetime.timedelta = datetime.timedelta(minutes=10),
        shared_memory: bool = True,
        job: Job | None = None,
    ) -> ParallelContext:
        """The context over an initialised default process group of `layout.world_size` processes.

        shared_memory: let CPU processes of one host reduce through memory instead of the network.
        """
        rank = dist.get_rank()
        traffic, activity = Traffic(), Activity() if job is None else job.activity
        through_host = device.type == "cuda" and dist.get_backend() == "gloo"

        def group(name: str, ranks: tuple[int, ...], *, reduces: bool) -> Group:
            if len(ranks) == 1 or rank not in ranks:
                return Group(name=name, ranks=(rank,))
            # Members alone make their group, in the same order of axes everywhere, so that no one waits in a circle.
            handle = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
            shared = None
            if reduces and shared_memory and device.type == "cpu" and dist.get_backend() == "gloo":
                shared = open_shared_group(handle, timeout_seconds=timeout.total_seconds())
            return Group(
                name=name,
                rank=ranks.index(rank),
                size=len(ranks),
                ranks=ranks,
                handle=handle,
                shared=shared,
                through_host=through_host,
                traffic=traffic,
                activity=activity,
            )

        stages = layout.members("pipeline", rank)
        return cls(
            layout=layout,
            rank=rank,
            world=Group(
                name="world",
                rank=rank,
                size=layout.world_size,
                ranks=tuple(range(layout.world_size)),
                handle=dist.group.WORLD,
                through_host=through_host,
                traffic=traffic,
                activity=activity,
            ),
            tensor=group("tensor", layout.members("tensor", rank), reduces=True),
            data=group("data", layout.members("data", rank), reduces=True),
            pipeline=group("pipeline", stages, reduces=False),
            embedding=group("embedding", (stages[0], stages[-1]) if len(stages) > 1 else (rank,), reduces=True),
            sequence_parallel=sequence_parallel and layout.tensor > 1,
            device=device,
            job=job,
        )

    def __enter__(self) -> ParallelContext:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        elif self.job is not None and not isinstance(error, JobError):  # of which all know already
            self.job.leave(reason_of(error))

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0

    @property
    def backend(self) -> str:
        """The communication library between ranks; "none" for a process alone."""
        return dist.get_backend() if self.world.size > 1 else "none"

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A phase of start-up, which ends on all ranks together or with the names of those who are late."""
        return nullcontext() if self.job is None else self.job.phase(name)

    def doing(self, what: str) -> None:
        """Say what this process is at, for reports of hangs."""
        self.world.activity.phase = what

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that may fail on some ranks only: if it fails on any, it fails on all with the same message.

        Must not enclose collectives. Raises `UserError` with the message of the first rank that raised one.
        """
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if failure is not None and not isinstance(failure, UserError) and self.world.size == 1:
            raise failure
        message = None if failure is None else str(failure) if isinstance(failure, UserError) else repr(failure)
        for rank, other in enumerate(self.world.gather_objects(message)):
            if other is not None:
                if failure is not None and not isinstance(failure, UserError):
                    raise failure
                raise UserError(other if rank == self.rank or message else f"{other} (on rank {rank})") from None

    def close(self) -> None:
        """Leave the process groups, when all ranks do."""
        if self.job is not None:
            self.job.leave()
        if self.world.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
