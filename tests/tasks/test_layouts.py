"""Fine-tuning in several layouts: the numbers, the kept checkpoint and the predictions of one process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron.config import ParallelConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, ReadingConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from tests.ranks import run_ranks
from tests.tasks.tiny import (
    metrics,
    write_bustm,
    write_c3,
    write_checkpoint,
    write_entities,
    write_reading,
    write_sentiment,
)

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
FOR_ALL: dict[str, tuple[int, dict[str, Any]]] = {
    "data 2": (2, {}),
    "tensor 2": (1, {TP: 2}),
    "sequence 2": (1, {TP: 2, "sequence_parallel": True}),
    "pipeline 2": (1, {PP: 2}),
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    **FOR_ALL,
    "interleaved 1 x 2, recomputed": (1, {"num_layers_per_virtual_pipeline_stage": 1, "recompute_granularity": "full"}),
    "ZeRO data 2, sequence 2, zero-bubble 2": (
        2,
        {
            TP: 2,
            PP: 2,
            "sequence_parallel": True,
            "pipeline_schedule": "zero-bubble",
            "use_distributed_optimizer": True,
        },
    ),
}


def write_cmrc2018(folder: Path) -> Path:
    for file, contexts in (("train", 12), ("dev", 6), ("test", 3)):
        write_reading(folder / f"{file}.json", file.upper(), contexts=contexts)
    return folder


# A task of each kind: a writer of its files, its options, and tokens. Of some the last step has but one row: a rank of
# two has none.
KINDS: dict[str, tuple[Callable[[Path], Path], TaskConfig, int]] = {
    "classification": (lambda folder: write_sentiment(folder, train=61), TaskConfig(task="classification"), 31),
    "tagging": (lambda folder: write_entities(folder, train=45, dev=13, test=9), TaskConfig(task="tagging"), 31),
    "multiple-choice": (lambda folder: write_c3(folder, train=41), TaskConfig(task="c3"), 40),
    "reading": (write_cmrc2018, TaskConfig(task="cmrc2018"), 31),
    "prompts": (write_bustm, TaskConfig(task="fewclue-bustm", prompt=True), 31),
}
# What is behind the head is the same for all kinds: the first goes through every layout.
RUNS = [(kind, layout) for kind in KINDS for layout in (LAYOUTS if kind == "classification" else FOR_ALL)]


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneConfig, Path]:
    """The configuration of a task, and the results of one process. Dropout is on."""
    folder = tmp_path_factory.mktemp("finetuning")
    write, task, seq_length = KINDS[request.param]
    checkpoint = write_checkpoint(folder / "checkpoint", characters="和意思相不同，")
    config = FinetuneConfig(
        task=dataclasses.replace(task, data_dir=str(write(folder / "data")), predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(folder / "out")),
        tuning=TuningConfig(epochs=2, global_batch_size=15, micro_batch_size=4, lr=1e-2, seq_length=seq_length),
        reading=ReadingConfig(doc_stride=14) if request.param == "reading" else ReadingConfig(),
    )
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_interval=1))
    finetune(config, ParallelContext.single())
    return config, folder / "out"


def run(context: ParallelContext, config: FinetuneConfig) -> None:
    finetune(config, dataclasses.replace(context, sequence_parallel=config.parallel.sequence_parallel))


@pytest.mark.parametrize(("alone", "name"), RUNS, indirect=["alone"], scope="module")
def test_fine_tuning_does_not_depend_on_the_layout(
    name: str, alone: tuple[FinetuneConfig, Path], tmp_path: Path
) -> None:
    config, expected = alone
    data, options = LAYOUTS[name]
    config = dataclasses.replace(
        config,
        parallel=ParallelConfig(**options),
        source=dataclasses.replace(config.source, output_dir=str(tmp_path)),
    )
    parallel = config.parallel
    layout = Layout(
        pipeline=parallel.pipeline_model_parallel_size, data=data, tensor=parallel.tensor_model_parallel_size
    )
    assert run_ranks(layout, run, config) == [None] * layout.world_size
    records = metrics(expected)
    steps = [record for record in records if record["split"] == "train"]
    assert len(steps) >= 5
    for a, b in zip(records, metrics(tmp_path), strict=True):
        for figure in ("loss", "accuracy", "grad_norm"):
            if figure in a:
                assert b[figure] == pytest.approx(a[figure], rel=2e-5), (figure, a["step"])
        if a["split"] == "train":
            flops, of_one = (row["model_tflops_per_second"] * row["step_seconds"] for row in (b, a))
            assert flops == pytest.approx(of_one) != 0
            assert {"mfu", "peak_memory_bytes", "loader_wait_seconds", "tokens_per_second"} <= set(b)
    one, other = (json.loads((folder / "dev_metrics.json").read_text()) for folder in (expected, tmp_path))
    assert list(one.values())[1] > 0  # the main score: something was learned
    assert other.pop("loss") == pytest.approx(one.pop("loss"), rel=2e-5) and other == one
    (submission,) = expected.glob("*predict*")
    assert (tmp_path / submission.name).read_bytes() == submission.read_bytes()
