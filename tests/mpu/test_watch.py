"""Ranks that die, hang or do not come are named; reports are readable."""

from pathlib import Path

import pytest

from megatron.mpu.pulse import (
    Operation,
    Process,
    Pulse,
    gone_report,
    hang_report,
    phase_report,
    ranges,
    this_process,
)
from megatron.mpu.watch import interval_of, watched_by
from tests.ranks import run_script

SCRIPT = Path(__file__).with_name("watched.py")


def process(host: str, pid: int = 7) -> Process:
    return Process(host=host, pid=pid, started=1, machine=host)


def test_a_job_that_ends_well_says_nothing(tmp_path: Path) -> None:
    assert run_script(SCRIPT, ["aab", "end", "0"], 3, tmp_path) == [(0, "")] * 3


@pytest.mark.parametrize(("rank", "hosts"), [(1, "aab"), (2, "aab")], ids=["of a shared host", "alone on its host"])
def test_a_dead_rank_is_named_by_all_others(tmp_path: Path, rank: int, hosts: str) -> None:
    results = run_script(SCRIPT, [hosts, "die", str(rank)], 3, tmp_path, seconds=30)
    assert results[rank][0] == -9
    for other in {0, 1, 2} - {rank}:
        code, error = results[other]
        assert code == 1 and f"the job ends: rank {rank} (host {hosts[rank]}, process" in error, error
        assert ("died" if rank == 1 else "gave no sign of life") in error


def test_when_the_store_dies_its_users_say_so(tmp_path: Path) -> None:
    """Without torchrun rank 0 hosts the store."""
    results = run_script(SCRIPT, ["abc", "die", "0"], 3, tmp_path, seconds=30)
    assert [code for code, _ in results] == [-9, 1, 1]
    assert all("rank 0, has ended" in error for _, error in results[1:])


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    results = run_script(SCRIPT, ["aab", "away", "2"], 3, tmp_path, seconds=30)
    for code, error in results[:2]:
        assert code == 1 and "rank 2 did not arrive" in error and "there: ranks 0, 1" in error, error


def test_ranks_that_wait_for_devices_name_who_is_behind(tmp_path: Path) -> None:
    """As with NCCL, where nobody waits inside an operation."""
    for code, error in run_script(SCRIPT, ["aab", "stall", "1"], 3, tmp_path, seconds=30):
        assert code == 1 and "the job ends: no operation of ranks has begun or ended for" in error, error
        assert "behind the others in the data group: rank 1 (host a," in error and "in step 5, at watched.py" in error
        assert error.count("behind") == 1


def test_every_rank_is_watched_and_the_work_does_not_grow() -> None:
    processes = [process(host) for host in "aaaabbbbcccc"]
    watched = [watched_by(rank, processes) for rank in range(12)]
    assert watched[1] == ((2,), ()) and watched[3] == ((0,), ())
    assert watched[0] == ((1,), (4, 5, 6, 7)) and watched[8] == ((9,), (0, 1, 2, 3))
    assert watched_by(0, [process("a")]) == ((), ())
    assert interval_of(8) == 2.0 and 4096 / interval_of(4096) < 512


def test_a_hang_names_who_counted_less() -> None:
    operation = Operation("all-reduce", "data", (0, 2, 4), 12, True, 0.0)
    pulses = {
        0: Pulse(entered={"data": 12}, inside=True, operation=str(operation)),
        2: Pulse(entered={"data": 11}, phase="step 7", at="loop.py:60 in train", operation="a barrier", seconds=31),
        4: Pulse(entered={"data": 13}),
    }
    report = hang_report("It hangs", operation, pulses, [process(host) for host in "abcde"])
    assert report.splitlines() == [
        "It hangs",
        "  arrived: ranks 0, 4",
        "  not there: rank 2 (host c, process 7), in step 7, at loop.py:60 in train; its last operation, a barrier, "
        "ended 31 s before",
    ]


def test_a_transfer_waits_for_the_other_end_alone() -> None:
    operation = Operation("receive", "pipeline", (1, 3), 0, True, 0.0)
    pulses = {1: Pulse(inside=True, operation=str(operation)), 3: Pulse(phase="step 2")}
    report = hang_report("x", operation, pulses, [process("a")] * 4)
    assert "arrived: rank 1\n" in report and "not there: rank 3 (host a, process 7), in step 2" in report


def test_a_phase_names_who_is_late_and_not_who_waits_for_them() -> None:
    pulses = {
        0: Pulse(phase_number=2, arrived=True),
        1: Pulse(phase_number=2, inside=True, operation="all-gather"),
        2: Pulse(phase_number=1, arrived=True, phase="start-up: data", at="indexed.py:90"),
    }
    report = phase_report(2, "start-up: data", 90.0, pulses, [process("a")] * 3)
    assert "within 1.5 minutes" in report and "not finished: rank 2" in report and "others: rank 1" in report
    assert "not finished: rank 1" not in report


def test_thousands_of_ranks_fit_on_a_screen() -> None:
    operation = Operation("all-reduce", "world", tuple(range(4096)), 5, True, 0.0)
    pulses = {rank: Pulse(entered={"world": 5 if rank < 100 else 4}) for rank in range(4096)}
    processes = [process("a")] * 4096
    assert len(hang_report("x", operation, pulses, processes)) < 2000
    assert "and 3988 more (ranks 108-4095)" in gone_report(range(100, 4096), pulses, processes, silent_seconds=40.0)
    assert ranges([7, 0, 1, 2, 5, 4]) == "0-2, 4, 5, 7"


def test_a_process_is_known_dead_only_where_it_can_be_seen() -> None:
    me = this_process()
    assert me.is_alive(me) and not me.has_died(me)
    other = Process(host=me.host, pid=me.pid, started=me.started + 1, machine=me.machine)
    assert other.has_died(me)  # the number was given to another process
    away = process("elsewhere")
    assert not away.has_died(me) and not away.is_alive(me)
    assert Pulse.decoded(Pulse(beat=3, entered={"a": 1}).encoded().encode()) == Pulse(beat=3, entered={"a": 1})
