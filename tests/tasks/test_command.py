"""The command line as a user types it, alone and under torchrun."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.tasks.tiny import metrics, run_command, write_checkpoint, write_sentiment


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("run")
    checkpoint = write_checkpoint(folder / "checkpoint")
    # 91 rows in batches of 15: the last batch has one row, so the second of two processes has none
    data = write_sentiment(folder / "data", train=91)
    return [
        *("--task", "classification", "--data-dir", data, "--pretrained-checkpoint", checkpoint, "--predict"),
        *("--epochs", 8, "--lr", 5e-3, "--global-batch-size", 15, "--seq-length", 32, "--log-interval", 1),
    ]


@pytest.fixture(scope="module")
def alone(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    result = run_command(*arguments, "--output-dir", output)
    assert result.returncode == 0, result.stderr
    assert "step 56/56" in result.stdout
    assert "ETA" in result.stdout
    return output


def test_learns_and_writes_what_it_says(alone: Path) -> None:
    found = json.loads((alone / "dev_metrics.json").read_text())
    assert found["accuracy"] > found["majority_accuracy"] + 0.3
    rows = metrics(alone)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 57))
    assert {"loss", "accuracy", "learning_rate", "grad_norm", "samples_per_second", "step_seconds"} <= set(rows[0])
    written = [json.loads(line) for line in (alone / "classification_predict.json").read_text().splitlines()]
    assert [row["id"] for row in written] == [str(1000 - row) for row in range(12)]
    assert {row["label"] for row in written} <= {"good", "bad"}


def test_two_processes_give_the_numbers_of_one(alone: Path, arguments: list[object], tmp_path: Path) -> None:
    result = run_command(*arguments, "--output-dir", tmp_path, processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step 56/56 |") == 2  # a training and a dev record, of one process only
    for one, two in zip(metrics(alone), metrics(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["accuracy"] == one["accuracy"]
        if one["split"] == "train":
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    name = "classification_predict.json"
    assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_wrong_label_ends_every_process_with_one_message(
    arguments: list[object], tmp_path: Path, processes: int
) -> None:
    with gzip.open(tmp_path / "train.json.gz", "wt", encoding="utf-8") as file:
        file.write('{"label": "100", "sentence": "x"}\n{"label": "105", "sentence": "x"}\n')
    (tmp_path / "dev.json").write_text('{"label": "100", "sentence": "x"}\n')
    wrong = ["--task", "tnews", "--data-dir", tmp_path, *arguments[4:6], "--output-dir", tmp_path / "out"]
    result = run_command(*wrong, "--seq-length", 32, processes=processes)
    assert result.returncode != 0
    message = f"finetune_clue.py: error: {tmp_path / 'train.json.gz'}, line 2: label '105' is none of the 15 of tnews"
    # torchrun ends the other processes as soon as one has failed, perhaps before they have said why.
    assert 1 <= result.stderr.count(message) <= processes
    assert "Traceback" not in result.stderr.split(message)[0]


def test_wrong_and_missing_flags() -> None:
    result = run_command("--task", "tnews", "--epoch", 3)
    assert result.returncode == 2
    assert "--epochs" in result.stderr
    result = run_command("--task", "tnews", "--output-dir", "x")
    assert result.returncode == 2
    for flag in ("--data-dir FOLDER", "--pretrained-checkpoint FOLDER"):
        assert f"{flag} is required" in result.stderr
    result = run_command("--batch-size", 8)
    assert result.returncode == 2
    assert result.stderr.strip().endswith(
        "--batch-size: use --global-batch-size (samples of a step over all processes)"
    )
