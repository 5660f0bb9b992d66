"""Preprocessing by a real Ray cluster on this machine: the bytes of local workers, also when one is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.data import division
from megatron.data.preprocess import PreprocessConfig, preprocess
from megatron.data.tokenizer import SPECIAL_TOKENS
from megatron.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreprocessConfig:
    monkeypatch.setattr(division, "SMALLEST_SHARD", 1 << 16)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *"我们在动物园你好。"]), encoding="utf-8")
    lines = [json.dumps({"text": "我们在动物园。你好。" * (i % 17)}, ensure_ascii=False) for i in range(10_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return PreprocessConfig(
        input=(f"{tmp_path}/a.jsonl",),
        output_prefix=f"{tmp_path}/out/corpus",
        tokenizer_type="BertWordPieceCase",
        vocab_file=f"{tmp_path}/vocab.txt",
        split_sentences=True,
        workers=2,
    )


@pytest.fixture
def address() -> Iterator[str]:
    """Address of a cluster of one node with two CPUs."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def outputs(config: PreprocessConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.output_prefix).parent.iterdir()}


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Kill the first process of the cluster that has begun to work."""
    while not killed:
        for path in folder.glob(f"{socket.gethostname()}-*.progress"):
            process = int(path.stem.rpartition("-")[2])
            if process != os.getpid() and path.stat().st_size:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                break
        time.sleep(0.01)


def test_a_killed_worker_changes_nothing(config: PreprocessConfig, address: str) -> None:
    preprocess(config)
    local = outputs(config)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(Path(f"{config.output_prefix}.shards"), killed), daemon=True)
    killer.start()
    preprocess(replace(config, ray=address))
    killer.join(timeout=10)
    assert killed
    assert outputs(config) == local


def test_a_bad_line_stops_the_run(config: PreprocessConfig, address: str) -> None:
    with open(config.input[0], "a", encoding="utf-8") as file:
        file.write("\n{")
    with pytest.raises(UserError, match=r"a.jsonl:10001: not JSON"):
        preprocess(replace(config, ray=address))


def test_no_cluster(config: PreprocessConfig) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="--ray auto: no connection to a Ray cluster"):
        preprocess(replace(config, ray="auto"))


def test_without_ray(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match="--ray needs the package ray: pip install ray"):
        preprocess(replace(config, ray="auto"))
