"""tools/run_clue.py as a user types it: one table of several tasks, killed in the middle, and the archive."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from megatron.arguments import parse
from megatron.errors import JobError, UserError
from megatron.tasks.benchmark.config import BenchmarkConfig
from megatron.tasks.benchmark.grid import published_grid
from megatron.tasks.benchmark.run import run_benchmark
from tests.commands import ROOT, run, start
from tests.tasks.tiny import CHARACTERS, write_checkpoint

FLAGS = ("--epochs", 1, "--seq-length", 32)


def write_tasks(folder: Path) -> Path:
    """Tiny files of two tasks; the first character of a headline says its topic."""
    rng = random.Random(7)
    for task, name in (("tnews", "TNEWS"), ("afqmc", "afqmc_public")):
        (folder / name).mkdir(parents=True)
        for split, count in (("train", 48), ("dev", 24), ("test", 13)):
            rows = []
            for number in range(count):
                label = rng.randrange(3 if task == "tnews" else 2)
                text = CHARACTERS[label] + "".join(rng.choices(CHARACTERS[10:], k=8))
                row = {"sentence": text} if task == "tnews" else {"sentence1": text, "sentence2": text[::-1]}
                own = {"label": ("100", "108", "116")[label] if task == "tnews" else str(label)}
                rows.append(row | ({"id": 5 * number} if split == "test" else own))
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.json").write_text(lines, encoding="utf-8")
    return folder


def benchmark(*arguments: object, flags: tuple[object, ...] = FLAGS) -> None:
    """The command in this process, which saves the start of another."""
    config = parse(BenchmarkConfig, list(map(str, arguments)), prog="run_clue.py", description="")
    run_benchmark(config, list(map(str, flags)), ROOT / "finetune_clue.py")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("inputs")
    data, checkpoint = write_tasks(folder / "tasks"), write_checkpoint(folder / "checkpoint")
    return [
        *("--data-dir", data, "--pretrained-checkpoint", checkpoint, "--jobs", 2),
        *("--global-batch-size", 8, "--lr", 1e-3, 1e-2, "--dropout", 0),
    ]


@pytest.fixture(scope="module")
def output(inputs: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark, uninterrupted, with its submission."""
    folder, said = tmp_path_factory.mktemp("output"), io.StringIO()
    with contextlib.redirect_stdout(said):
        benchmark(*inputs, "--output-dir", folder, "--submission", folder / "sent", "--team", "tiny")
    for line in ("left out: cmrc2018, no folder of it", "[4/4] ", "| ETA 0:00:00", "nothing wrong found for clue1.1"):
        assert line in said.getvalue()
    return folder


def results(folder: Path) -> list[dict[str, Any]]:
    """The tasks of the table, without the places of the runs."""
    text = re.sub(r'"folder": ".*"', '"folder": ""', (folder / "results.json").read_text())
    tasks: list[dict[str, Any]] = json.loads(text)["tasks"]
    return tasks


def test_the_table_has_the_values_of_the_runs(output: Path) -> None:
    tasks = json.loads((output / "results.json").read_text())["tasks"]
    assert [task["task"] for task in tasks] == ["afqmc", "tnews"]
    for task in tasks:
        metrics = [json.loads((Path(each["folder"]) / "dev_metrics.json").read_text()) for each in task["trials"]]
        assert [each["score"] for each in task["trials"]] == [each["accuracy"] for each in metrics]
        assert [each["lr"] for each in task["trials"]] == [1e-3, 1e-2]
        assert task["best"]["score"] == task["mean"] == max(each["accuracy"] for each in metrics)
        assert task["majority"] == metrics[0]["majority_accuracy"]
        # only the best run of a task keeps its weights
        kept = [each["folder"] for each in task["trials"] if (Path(each["folder"]) / "best").exists()]
        assert kept == [task["best"]["folder"]]
        cells = [f"{100 * task['best']['score']:.2f}", f"{100 * task['mean']:.2f} (1)", f"{100 * task['majority']:.2f}"]
        row = f"| {task['task']} | accuracy | {' | '.join(cells)} | 8 | {task['best']['lr']:g} | 0 | 1234 | 2 |"
        assert row in (output / "results.md").read_text()
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_archive_holds_the_best_runs_predictions(output: Path, inputs: list[object]) -> None:
    (path,) = (output / "sent").glob("submit_tiny_*.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["afqmc_predict.json", "tnews11_predict.json"]
        rows = [json.loads(line) for line in archive.read("tnews11_predict.json").decode().splitlines()]
    assert [row["id"] for row in rows] == [5 * number for number in range(13)]
    assert {row["label"] for row in rows} <= {"100", "108", "116"}
    with zipfile.ZipFile(output / "wrong.zip", "w") as archive:
        archive.writestr("tnews_predict.json", "")
        archive.writestr("afqmc_predict.json", "".join(f'{{"id": {5 * n % 20}, "label": "0"}}\n' for n in range(13)))
    with pytest.raises(UserError) as error:
        benchmark("--validate", output / "wrong.zip", *inputs[:2], flags=())
    assert "afqmc_predict.json, line 5: id 0 again, as in line 1" in str(error.value)
    assert "tnews_predict.json: not a name that clue1.1 reads" in str(error.value)


def test_killed_in_the_middle_it_ends_with_the_same_table(output: Path, inputs: list[object], tmp_path: Path) -> None:
    arguments = ["tools/run_clue.py", *inputs, "--output-dir", tmp_path, "--tasks", "afqmc", "--jobs", 1, "--", *FLAGS]
    command = start(*arguments, start_new_session=True)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("afqmc/*/run.json"))) < 2:  # the first is finished, the second begun
        assert command.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    (first,) = tmp_path.glob("afqmc/*/dev_metrics.json")
    written = first.stat().st_mtime_ns
    result = run(*arguments, seconds=240)
    assert result.returncode == 0, result.stderr
    assert "2 runs, 1 of them finished earlier" in result.stdout
    assert first.stat().st_mtime_ns == written
    assert results(tmp_path) == results(output)[:1]


def test_failed_runs_are_named_and_stop_no_others(
    inputs: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    train = tasks / "afqmc_public" / "train.json"
    train.write_text(train.read_text() + '{"sentence1": "x", "sentence2": "y", "label": "2"}\n')
    output = tmp_path / "out"
    with pytest.raises(JobError) as error:
        benchmark(*inputs, "--lr", 1e-3, "--data-dir", tasks, "--output-dir", output)
    assert str(error.value) == (
        "1 runs failed; the same command tries them again:\n  afqmc, batch 8, lr 0.001, dropout 0, seed 1234"
    )
    assert f"finetune_clue.py: error: {train}, line 49: label '2' is none of the 2 of afqmc" in capsys.readouterr().out
    (task,) = json.loads((output / "results.json").read_text())["tasks"]
    assert task["task"] == "tnews"
    assert "Runs without a result: afqmc, batch 8" in (output / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "flags", "message"),
    [
        (("--data-dir", ""), FLAGS, "--data-dir FOLDER is required"),
        (("--tasks", "afqcm"), FLAGS, "unknown task (did you mean afqmc?)"),
        (("--tasks", "csl"), FLAGS, "has no folder of any of csl"),
        (("--jobs", 0, "--seeds"), FLAGS, "--jobs must be at least 1, not 0\n  - --seeds needs at least one seed"),
        ((), ("--lr", 1e-3), "--lr: give --lr before the --"),
        ((), ("--zero-shot",), "--zero-shot: there is nothing to try without training"),
        (("--validate", "a.zip"), FLAGS, "no flags of runs follow: --epochs 1 --seq-length 32"),
        ((), ("--epochs", 0), "--epochs must be positive, not 0"),
        (("--lr", -1), FLAGS, "--lr must be positive and finite, not -1.0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    inputs: list[object], tmp_path: Path, arguments: tuple[object, ...], flags: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark(*inputs, "--output-dir", tmp_path / "out", *arguments, flags=flags)
    assert not (tmp_path / "out").exists()


def test_where_every_run_failed_nothing_is_submitted(inputs: list[object], tmp_path: Path) -> None:
    arguments = (*inputs, "--tasks", "afqmc", "--lr", 1e-3, "--output-dir", tmp_path, "--submission", tmp_path / "sent")
    with pytest.raises(JobError, match="1 runs failed"):
        benchmark(*arguments, flags=("--seq-length", 9999))
    assert not (tmp_path / "sent").exists()


@pytest.mark.parametrize("name", ["afqmc", "iflytek", "cluewsc2020", "c3", "fewclue-tnews"])
def test_published_grids(name: str) -> None:
    points = published_grid(name).points()
    assert len(set(points)) == len(points) == {"afqmc": 12, "iflytek": 24, "cluewsc2020": 32, "c3": 6}.get(name, 12)
