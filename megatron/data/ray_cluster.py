"""Work as tasks of a Ray cluster (Moritz et al., OSDI 2018): its processes, its resource limits, its retries."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from megatron.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""Times that a dead process is started again, and that its item is tried again."""


def ray_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, workers: int, address: str
) -> Generator[Result, None, None]:
    """The results of `make()(item)`, as they come, computed by `workers` actors of one CPU each in the cluster.

    `address` is what `ray.init` takes. `make` runs once in each actor; at most one item an actor is under way. An
    exception of the function is raised here. Raises `UserError` without Ray, without the cluster, and if actors die
    again and again.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs the package ray: pip install ray") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"--ray {address}: no connection to a Ray cluster: {error}") from None
    try:
        remote = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(_Actor)
        idle = [remote.remote(make, os.getcwd()) for _ in range(workers)]
        busy: dict[Any, Any] = {}

        def next_result() -> Result:
            (reference,), _ = ray.wait(list(busy), num_returns=1)
            idle.append(busy.pop(reference))
            try:
                result: Result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"--ray {address}: a worker died, and {RETRIES} more after it: {reason}") from None
            return result

        for item in items:
            if not idle:
                yield next_result()
            actor = idle.pop()
            busy[actor.call.remote(item)] = actor
        while busy:
            yield next_result()
    finally:
        ray.shutdown()


class _Actor:
    """A process of the cluster with the function made once."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        os.chdir(folder)  # paths may be relative
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._function = make()

    def call(self, item: Any) -> Any:
        return self._function(item)
