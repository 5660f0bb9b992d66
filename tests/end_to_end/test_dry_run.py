"""`pretrain_bert.py --dry-run` as a command: runs of any size, looked at on one process."""

from __future__ import annotations

import time
from functools import partial

import pytest

from tests.commands import run

dry_run = partial(run, "pretrain_bert.py", "--dry-run")
LARGE = (
    "--preset", "erlangshen-megatronbert-3.9b", "--seq-length", 512, "--micro-batch-size", 2, "--bf16",
    "--tensor-model-parallel-size", 4, "--pipeline-model-parallel-size", 8, "--sequence-parallel",
    "--use-distributed-optimizer", "--global-batch-size", 4096,
)  # fmt: skip


def test_a_rank_of_thousands_in_seconds() -> None:
    started = time.monotonic()
    result = dry_run(*LARGE, "--world-size", 4096, "--rank", 3621)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 60  # a few seconds on a machine that does nothing else
    for line in (
        "layout: 4096 processes = tensor 4 x pipeline 8 x data 128, sequence parallel, distributed optimizer",
        "batch: 4096 samples of 512 tokens = 2 samples x 16 micro-batches x 128 data-parallel, bf16",
        "rank 3621: tensor 1, data 9, pipeline stage 7",
        "  pipeline group: 37, 549, 1061, 1573, 2085, 2597, 3109, 3621",
        "  chunk 0: layers 42 to 47 of 48, heads",
    ):
        assert line in result.stdout.splitlines()
    assert "exact, fp32" in result.stdout and "bubble 43.8%" in result.stdout


def test_draws_a_short_plan() -> None:
    result = dry_run(
        "--preset", "roberta-tiny-clue", "--seq-length", 128, "--micro-batch-size", 2, "--global-batch-size", 12,
        "--world-size", 4, "--rank", 3, "--pipeline-model-parallel-size", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "  stage 1  |...F0 B0--- F1 B1--- F2 B2--- ......|" in result.stdout.splitlines()


def test_says_what_is_needed() -> None:
    shape = ("--num-layers", 2, "--hidden-size", 8, "--num-attention-heads", 2, "--max-position-embeddings", 32)
    result = dry_run(*shape, "--seq-length", 32, "--micro-batch-size", 1)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--vocab-size N, a --preset with one, or --vocab-file" in result.stderr
    assert dry_run(*shape, "--seq-length", 32, "--micro-batch-size", 1, "--vocab-size", 50).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ("--world-size", 100, "--rank", 100, "--global-batch-size", 4095, "--recompute-num-layers", 2),
            [
                "4 problems:",
                "nearest numbers of processes: 96 or 128",
                "nearest: 4092 or 4098",
                "--recompute-num-layers needs --recompute-granularity full",
                "--rank 100 must be from 0 to 99",
            ],
        ),
        (("--rank", 64), ["--rank 64 must be from 0 to"]),
        (("--vocab-file", "/nowhere/vocab.txt", "--world-size", 4096), ["/nowhere/vocab.txt"]),
    ],
)
def test_every_rule_is_checked(arguments: tuple[object, ...], messages: list[str]) -> None:
    size = () if "--world-size" in arguments else ("--world-size", 64)
    result = dry_run(*LARGE, *arguments, *size)
    assert (result.returncode, result.stdout) == (2, "")
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_a_dry_run_need_it() -> None:
    result = run("pretrain_bert.py", "--world-size", 8, "--rank", 1)
    assert result.returncode == 2
    assert "--world-size needs --dry-run" in result.stderr and "--rank needs --dry-run" in result.stderr
