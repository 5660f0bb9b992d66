"""A short run whose steps are all recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from tests.tasks.tiny import metrics, write_checkpoint, write_sentiment

SEED, EPOCHS, BATCH = 1234, 2, 15


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 rows: of a step of 15 two processes have unlike shares, the last step has one row. 12 of "bad", 19 "good"."""
    folder = write_sentiment(tmp_path_factory.mktemp("sentiment"), train=60, dev=20)
    header, *rows = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()
    bad, good = ([row for row in rows if row.startswith(label)] for label in ("bad", "good"))
    (folder / "train.tsv").write_text("\n".join([header, *bad[:12], *good[:19]]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def config(checkpoint: Path, data: Path, tmp_path: Path) -> FinetuneConfig:
    """A run of 6 steps with a record of each."""
    made = FinetuneConfig(
        task=TaskConfig(task="classification", data_dir=str(data)),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(tmp_path / "out")),
        tuning=TuningConfig(
            epochs=EPOCHS, global_batch_size=BATCH, lr=5e-3, seq_length=32, weight_decay=0.1, clip_grad=0.5
        ),
    )
    return dataclasses.replace(made, logging=dataclasses.replace(made.logging, log_interval=1))



def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [record for record in metrics(folder) if record["split"] == "train"]
