"""Fine-tuning in several layouts: the numbers, the kept checkpoint and the predictions of one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron.config import ParallelConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from tests.ranks import run_ranks
from tests.tasks.tiny import metrics, write_checkpoint, write_sentiment

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "data 2": (2, {}),
    "tensor 2": (1, {TP: 2}),
    "sequence 2": (1, {TP: 2, "sequence_parallel": True}),
    "pipeline 2": (1, {PP: 2}),
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneConfig, Path]:
    """The configuration, and the results of one process. Dropout is on; of 61 rows the last step has but one."""
    folder = tmp_path_factory.mktemp("finetuning")
    config = FinetuneConfig(
        task=TaskConfig(task="classification", data_dir=str(write_sentiment(folder / "data", train=61)), predict=True),
        source=ModelSourceConfig(
            pretrained_checkpoint=str(write_checkpoint(folder / "checkpoint")), output_dir=str(folder / "out")
        ),
        tuning=TuningConfig(epochs=2, global_batch_size=15, micro_batch_size=4, lr=5e-3, seq_length=31),
    )
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_interval=1))
    finetune(config, ParallelContext.single())
    return config, folder / "out"


def run(context: ParallelContext, config: FinetuneConfig) -> None:
    finetune(config, dataclasses.replace(context, sequence_parallel=config.parallel.sequence_parallel))


@pytest.mark.parametrize("name", LAYOUTS)
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
    for a, b in zip(metrics(expected), metrics(tmp_path), strict=True):
        for figure in ("loss", "accuracy", "grad_norm"):
            if figure in a:
                assert b[figure] == pytest.approx(a[figure], rel=2e-5), (figure, a["step"])
    one, other = (json.loads((folder / "dev_metrics.json").read_text()) for folder in (expected, tmp_path))
    assert other["loss"] == pytest.approx(one["loss"], rel=2e-5) and other["accuracy"] == one["accuracy"]
    (submission,) = expected.glob("*predict*")
    assert (tmp_path / submission.name).read_bytes() == submission.read_bytes()
