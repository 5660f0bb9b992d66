import gc
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.shared_memory import (
    MOST_SLOT_BYTES,
    all_gather_into,
    all_reduce_,
    open_shared_group,
    reduce_scatter,
    supports,
)
from megatron.native import _C
from tests.ranks import run_ranks

SMALL_SLOT = 4096  # so that few elements are many chunks
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64]
COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Whatever a test does, /dev/shm is as it was; other runs' segments have names for milliseconds."""
    before = segments()
    yield
    left = segments() - before
    deadline = time.monotonic() + 5.0
    while left & segments() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left & segments()


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("megatron-*")}


def opened(context: ParallelContext, slot_bytes: int | None = None, seconds: float = 60.0) -> _C.SharedGroup:
    assert context.world.handle is not None
    group = open_shared_group(context.world.handle, timeout_seconds=seconds, slot_bytes=slot_bytes)
    assert group is not None
    return group


def values(rank: int, count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """What a rank brings; the others can draw it too. Of very different sizes, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * count + rank)
    drawn = torch.randn(count, generator=generator) * 10.0 ** torch.randint(-3, 4, (count,), generator=generator)
    return (drawn * 1000).to(dtype) if dtype == torch.int64 else drawn.to(dtype)


def expected(size: int, count: int, dtype: torch.dtype, operation: str = "sum", seed: int = 0) -> torch.Tensor:
    """In order of rank; bf16 in fp32, rounded at the end."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    parts = [values(rank, count, dtype, seed).to(wide) for rank in range(size)]
    return reduce(COMBINE[operation], parts).to(dtype)


def reductions(context: ParallelContext) -> None:
    rank, size = context.rank, context.world.size
    for slot_bytes in (SMALL_SLOT, None):
        group = opened(context, slot_bytes)
        for dtype in DTYPES:
            for count in (0, 1, 7, 1000, 8193, 100_003):
                for operation in COMBINE:
                    tensor = values(rank, count, dtype)
                    assert all_reduce_(group, tensor, operation)
                    assert torch.equal(tensor, expected(size, count, dtype, operation)), (dtype, count, operation)


def test_all_reduce_is_the_sum_in_order_of_rank() -> None:
    for size in (2, 3, 4):
        run_ranks(Layout(data=size), reductions)


def large_reduction(context: ParallelContext) -> None:
    group = opened(context)
    tensor = values(context.rank, 3_000_001, torch.float32)
    all_reduce_(group, tensor)
    whole = expected(context.world.size, 3_000_001, torch.float32)
    assert torch.equal(tensor, whole)
    # The position in the buffer and the chunks do not matter.
    part = values(context.rank, 3_000_001, torch.float32)[999_999:1_999_998]
    all_reduce_(group, part)
    assert torch.equal(part, whole[999_999:1_999_998])


def test_a_reduction_of_many_slots() -> None:
    run_ranks(Layout(data=2), large_reduction)
    run_ranks(Layout(data=3), large_reduction)


def scattered_and_gathered(context: ParallelContext) -> None:
    rank, size = context.rank, context.world.size
    for slot_bytes in (SMALL_SLOT, None):
        group = opened(context, slot_bytes)
        for dtype in DTYPES:
            for count in (0, 1, 7, 1000, 50_001):
                whole = expected(size, size * count, dtype)
                mine = slice(rank * count, (rank + 1) * count)
                tensor, part = values(rank, size * count, dtype), torch.full((count,), 77, dtype=dtype)
                assert reduce_scatter(group, part, tensor)
                assert torch.equal(part, whole[mine])
                assert reduce_scatter(group, tensor[mine], tensor)  # in place
                assert torch.equal(tensor[mine], whole[mine])

                gathered = torch.full((size * count,), 77, dtype=dtype)
                assert all_gather_into(group, gathered, part)
                assert torch.equal(gathered, whole)
                assert all_gather_into(group, tensor, tensor[mine])  # in place
                assert torch.equal(tensor, whole)
        flags, flag = torch.zeros(size, dtype=torch.bool), torch.tensor([rank == 1])
        assert all_gather_into(group, flags, flag)  # gathering takes any dtype
        assert flags.tolist() == [member == 1 for member in range(size)]


def test_reduce_scatter_and_all_gather() -> None:
    for size in (2, 3, 4):
        run_ranks(Layout(data=size), scattered_and_gathered)


def many_calls(context: ParallelContext) -> None:
    rank, size = context.rank, context.world.size
    groups = [opened(context, SMALL_SLOT), opened(context)]
    counts = (1, 33, 2000, 5000, 256, 20_001)
    for call in range(2000):
        group, count = groups[call // 3 % 2], counts[call * 7 % len(counts)]
        tensor = torch.arange(count, dtype=torch.float32) + call + rank
        if call % 5 == 0:
            parts = torch.empty(size * count)
            all_gather_into(group, parts, tensor)
            assert all(parts[(k + 1) * count - 1].item() == count - 1 + call + k for k in range(size))
        elif call % 5 == 1:
            part = torch.empty(count)
            reduce_scatter(group, part, tensor.repeat(size))
            assert part[-1].item() == size * (count - 1 + call) + sum(range(size))
        elif call % 5 == 2:
            group.barrier()
        else:
            all_reduce_(group, tensor)
            assert tensor[0].item() == size * call + sum(range(size))
            assert tensor[-1].item() == size * (count - 1 + call) + sum(range(size))
        if call % 97 == rank:
            time.sleep(0.001)  # so that each is the last one now and then


def test_many_interleaved_calls_on_two_groups() -> None:
    run_ranks(Layout(data=2), many_calls)
    run_ranks(Layout(data=4), many_calls)


def not_finite(context: ParallelContext) -> None:
    group = opened(context)
    for dtype in (torch.float32, torch.bfloat16):
        for operation in COMBINE:
            tensor = torch.tensor([1.0, float("nan") if context.rank == 0 else 2.0, float("inf")] * 20).to(dtype)
            tensor[-1] = float("nan") if context.rank == 1 else -1.0
            all_reduce_(group, tensor, operation)
            assert tensor[1].isnan() and tensor[-1].isnan() and tensor[2].isposinf() and not tensor[0].isnan()


def test_nan_and_infinity_arrive() -> None:
    run_ranks(Layout(data=2), not_finite)


def unsupported(context: ParallelContext) -> None:
    group = opened(context)
    for tensor in (torch.ones(4, dtype=torch.float16), torch.ones(4, 4).t(), torch.ones(4, device="meta")):
        assert not supports(tensor)
        assert not all_reduce_(group, tensor)
    assert not all_gather_into(group, torch.ones(8, 8).t(), torch.ones(32))
    with pytest.raises(ValueError, match="is not 2 times"):
        reduce_scatter(group, torch.ones(3), torch.ones(7))
    whole = torch.ones(8)
    with pytest.raises(ValueError, match="overlaps"):
        reduce_scatter(group, whole[1:5], whole)
    tensor = torch.ones(3)
    assert all_reduce_(group, tensor) and tensor.tolist() == [2.0] * 3  # nothing above was an operation


def test_what_cannot_be_handled_is_left_alone() -> None:
    run_ranks(Layout(data=2), unsupported)


def no_room(context: ParallelContext) -> bool:
    assert context.world.handle is not None
    return open_shared_group(context.world.handle, timeout_seconds=5.0, slot_bytes=1 << 44) is None


def test_without_room_all_fall_back() -> None:
    assert run_ranks(Layout(data=2), no_room) == [True, True]


def one_does_not_arrive(context: ParallelContext) -> str:
    group = opened(context, seconds=0.7)
    group.barrier()
    if context.rank == 2:
        dist.barrier()  # it stays in the group until the others are done
        return ""
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        all_reduce_(group, torch.ones(100_000))
    assert time.monotonic() - begin < 5.0
    with pytest.raises(RuntimeError, match="after an error"):
        group.barrier()
    dist.barrier()
    return str(caught.value)


def test_who_does_not_arrive_is_named() -> None:
    messages = run_ranks(Layout(data=3), one_does_not_arrive)
    assert all("all-reduce" in message and "member 2" in message for message in messages[:2]), messages
    assert any("did not arrive within 0.7 s" in message for message in messages[:2])


def one_leaves(context: ParallelContext) -> str:
    group = opened(context)
    tensor = torch.ones(100_000)
    all_reduce_(group, tensor)
    if context.rank == 1:
        return ""
    with pytest.raises(RuntimeError) as caught:
        all_reduce_(group, tensor)
    return str(caught.value)


def test_who_has_left_is_named() -> None:
    assert "member 1 has left the group" in run_ranks(Layout(data=2), one_leaves)[0]


def different_calls(context: ParallelContext) -> str:
    group = opened(context)
    with pytest.raises(RuntimeError) as caught:
        all_reduce_(group, torch.ones(1000 + context.rank))
    return str(caught.value)


def test_different_calls_are_an_error_and_not_a_mixture() -> None:
    assert all("member" in message for message in run_ranks(Layout(data=2), different_calls))


def alarmed(context: ParallelContext) -> list[str]:
    """A signal reaches Python while C++ waits; what the handler raises ends the wait, on both sides."""
    group = opened(context)
    seen: list[str] = []

    def note(*_: Any) -> None:
        seen.append("noted")
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if context.rank == 1:
        dist.barrier()
        group.barrier()  # at which member 0 had arrived
        with pytest.raises(RuntimeError, match="member 0 has given up"):
            group.barrier()
        dist.barrier()
        return []
    signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        group.barrier()
    dist.barrier()
    dist.barrier()  # it stays in the group until the other is done
    return seen


def test_signal_handlers_run_while_waiting() -> None:
    assert run_ranks(Layout(data=2), alarmed)[0] == ["noted"]


def member(name: str, rank: int, size: int, results: Any) -> None:
    """Without gloo, which has its own opinion of ranks that die."""
    deadline = time.monotonic() + 30.0
    while True:
        try:
            group = _C.SharedGroup(name, rank, size, MOST_SLOT_BYTES, rank == 0, timeout_seconds=60.0)
            break
        except RuntimeError:  # not created yet
            assert rank > 0 and time.monotonic() < deadline
            time.sleep(0.01)
    tensor = torch.ones(500_000)
    group.barrier()
    try:
        while True:
            all_reduce_(group, tensor)
            if rank == size - 1 and tensor[0].item() > 1e20:
                os.kill(os.getpid(), signal.SIGKILL)
    except RuntimeError as error:
        results.put((rank, str(error)))
    del group
    gc.collect()


def test_who_is_killed_is_named_within_seconds() -> None:
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    name = f"megatron-test-{secrets.token_hex(8)}"
    members = [context.Process(target=member, args=(name, rank, 3, results), daemon=True) for rank in range(3)]
    for process in members:
        process.start()
    try:
        # The dead one is not waited for before: it stays a zombie, as under a launcher that is busy.
        begin = time.monotonic()
        messages = dict(results.get(timeout=20.0) for _ in range(2))
        assert time.monotonic() - begin < 10.0
    finally:
        for process in members:
            process.kill()
            process.join(5.0)
    assert members[2].exitcode == -signal.SIGKILL
    assert set(messages) == {0, 1}
    assert all("member 2" in message for message in messages.values()), messages
    assert any("has died" in message for message in messages.values())
