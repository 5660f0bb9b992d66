"""Work spread over processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from megatron.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """The results of `make()(item)` in the order of the items, computed in `workers` new processes.

    `make` runs once in each process. At most two items a worker are under way, whatever their number. An exception of
    the function is raised here in its turn; a process that died is a `UserError`. Close the iterator to end the
    processes early, in the middle of an item. They end with this process too, and leave Ctrl-C and SIGTERM to it.
    """
    context = multiprocessing.get_context("spawn")
    idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    processes = []

    def call(item: Item) -> Result:
        connection = idle.get()
        try:
            connection.send(item)
            result = connection.recv()
        except (EOFError, OSError):
            raise UserError(
                "a worker process died: it was killed or there was not enough memory; try fewer --workers"
            ) from None
        finally:
            idle.put(connection)
        if isinstance(result, Exception):
            raise result
        return result

    threads = ThreadPoolExecutor(workers)
    try:
        with _interrupts_held():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(make, theirs), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()
                idle.put(ours)
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(threads.submit(call, item))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for process in processes:
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.join()


def _work(make: Callable[[], Callable[[Item], Result]], connection: Connection) -> None:
    # One process, one core: the tokenizers library would start threads of its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function: Callable[[Item], Result] | None = None
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        result: Result | Exception
        try:
            function = function or make()
            result = function(item)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            result = error
        try:
            connection.send(result)
        except OSError:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see Ctrl-C or SIGTERM: the signal mask is inherited."""
    resource_tracker.ensure_running()  # its start would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
