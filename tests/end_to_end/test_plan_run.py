"""tools/plan_run.py as a command."""

from __future__ import annotations

import re
import shlex
from functools import partial

import pytest

from megatron.arguments import parse
from megatron.config import PretrainConfig
from megatron.training.dry_run import dry_run
from tests.commands import ROOT, run

SMALL = (
    "--preset", "bert-base-chinese", "--seq-length", 512, "--bf16", "--global-batch-size", 256, "--num-gpus", 16,
    "--gpu-profile", "a100-40",
)  # fmt: skip
plan_run = partial(run, "tools/plan_run.py")


def test_a_table_a_recommendation_and_a_command() -> None:
    result = plan_run(*SMALL, "--top", 5)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.match(r"16 a100-40 GPUs of 40 GiB, 8% of it left to libraries: \d+ layouts fit\.", lines[0])
    heads = "layout weights grads optimizer activ. total fits bubble comm.GB s/step tokens/s MFU".split()
    assert re.findall("|".join(map(re.escape, heads)), lines[3]) == heads
    rows = lines[4:9]
    assert all(" yes " in row and row.endswith("%") for row in rows) and lines[9] == ""
    command = next(line for line in lines if line.startswith("torchrun "))
    assert command.startswith("torchrun --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d")
    flags = shlex.split(command.split("pretrain_bert.py ")[1])
    config = parse(PretrainConfig, flags, prog="pretrain_bert.py", description="")
    assert config.problems(16) == [] and config.model.num_layers == 12 and config.precision.bf16
    assert lines[-1] == "Put in your own: --data-path, --vocab-file, --lr, --train-iters."


def test_the_recommended_layout_is_what_a_dry_run_builds() -> None:
    planned = plan_run(*SMALL, "--pipeline-model-parallel-size", 4, "--micro-batch-size", 4)
    command = next(line for line in planned.stdout.splitlines() if line.startswith("torchrun "))
    flags = shlex.split(command.split("pretrain_bert.py ")[1])
    del flags[flags.index("--vocab-file") : flags.index("--vocab-file") + 2]
    built = []
    for rank in (0, 15):
        dry = [*flags, "--dry-run", "--world-size", "16", "--rank", str(rank)]
        lines = dry_run(parse(PretrainConfig, dry, prog="pretrain_bert.py", description=""))
        assert lines[0].startswith("layout: 16 processes = tensor ") and " x pipeline 4 x " in lines[0]
        built += [line.split()[1] for line in lines if line.startswith("  total ")]
    assert next(line.split()[1] for line in planned.stdout.splitlines() if line.startswith("  total ")) in built


def test_what_does_not_fit_is_said() -> None:
    result = plan_run(*SMALL, "--gpu-memory-gb", 0.1, "--top", 3)
    assert result.returncode == 0, result.stderr
    assert "no layout fits; those that need least:" in result.stdout and " no " in result.stdout
    assert "torchrun" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ((), ["--num-gpus is required", "--global-batch-size is required", "--num-layers", "--seq-length"]),
        ((*SMALL, "--num-gpus", 0, "--gpu-memory-gb", -1, "--top", 0), ["3 problems", "-1", "--top must be"]),
        ((*SMALL, "--tensor-model-parallel-size", 5), ["nearest numbers of processes: 15 or 20", "nearest that do"]),
        ((*SMALL, "--gpu-profile", "abacus"), ["invalid choice"]),
        ((*SMALL, "--vocab-size", 0), ["--vocab-size N, a --preset with one"]),
    ],
)
def test_mistakes_end_with_one_message(arguments: tuple[object, ...], messages: list[str]) -> None:
    result = plan_run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_document_shows_what_the_planner_says() -> None:
    result = plan_run("--published")
    assert result.returncode == 0, result.stderr
    document = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    for table in result.stdout.strip().split("\n\n"):
        assert table in document, "docs/planner.md is old: put in what tools/plan_run.py --published prints"
