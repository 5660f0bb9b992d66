"""tools/plot_metrics.py as a command."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

from tests.commands import run


def plot(metrics: Path, output: Path) -> CompletedProcess[str]:
    return run("tools/plot_metrics.py", "--metrics-file", metrics, "--output", output)


def test_draws_training_and_validation(tmp_path: Path) -> None:
    records = [{"step": step, "split": "train", "mlm_loss": 9.0 - step, "mlm_accuracy": 0.1} for step in range(5)]
    records.append({"step": 4, "split": "valid", "mlm_loss": 5.5, "mlm_accuracy": 0.2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = plot(tmp_path / "metrics.jsonl", tmp_path / "loss.svg")
    assert result.returncode == 0, result.stderr
    picture = (tmp_path / "loss.svg").read_text()
    assert "<!-- masked LM loss (nats) -->" in picture
    assert "<!-- valid -->" in picture
    assert "sentence order" not in picture  # a run without the binary head has no such panel


def test_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "mlm_loss": 3.0}\n{"step": 2, "mlm\n')
    result = plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert result.returncode == 2
    assert "metrics.jsonl, line 2" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "loss.png").exists()


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name in ("none.jsonl", "empty.jsonl"):
        result = plot(tmp_path / name, tmp_path / "loss.png")
        assert (result.returncode, name in result.stderr) == (2, True)
