"""One process makes a file, the others wait for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megatron.data import samples
from megatron.data.indexed import IndexedDataset
from megatron.data.lock import one_maker
from megatron.data.samples import SampleRule, open_sample_index
from megatron.errors import UserError

from .made_up import random_documents, write_corpus

HOLDER = """
import sys, time
from pathlib import Path
from megatron.data.lock import one_maker
with one_maker(Path(sys.argv[1]), limit=10.0) as ours:
    assert ours
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that makes tmp_path/file and never gets done."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_wait_ends_with_the_name_of_the_maker(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(
            UserError, match=rf"file is not there after .*: process {holder.pid} on host .*--startup-timeout"
        ),
        one_maker(tmp_path / "file", limit=0.2),
    ):
        pass


def test_a_killed_maker_leaves_nothing_to_clean_up(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    with one_maker(tmp_path / "file", limit=30.0) as ours:
        assert ours
    killer.join()
    assert list(tmp_path.iterdir()) == []


def test_the_wait_ends_with_the_file(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    writer = threading.Timer(0.2, (tmp_path / "file").touch)
    writer.start()
    with one_maker(tmp_path / "file", limit=30.0) as ours:
        assert not ours
    writer.join()


def test_an_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 100))
    rule = SampleRule(seq_length=32, binary_head=True, short_seq_prob=0.1, seed=1)
    built: list[float] = []
    write = samples.write_index

    def slowly(*arguments) -> None:
        time.sleep(0.3)
        write(*arguments)
        built.append(time.monotonic())

    monkeypatch.setattr(samples, "write_index", slowly)
    with ThreadPoolExecutor(8) as pool:
        indices = list(
            pool.map(
                lambda _: open_sample_index(
                    IndexedDataset(dataset.prefix), "train", (0, 100), rule, None, wait_seconds=30.0
                ),
                range(8),
            )
        )
    assert len(built) == 1
    for index in indices:
        assert isinstance(index.rows, np.memmap)
        np.testing.assert_array_equal(index.rows, indices[0].rows)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".samples"]
