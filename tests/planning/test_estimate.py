"""The estimated time of a step: what it must obey, and how near it is to published runs."""

from __future__ import annotations

import dataclasses

import pytest

from megatron.config import ModelConfig, ParallelConfig
from megatron.mpu.layout import Layout
from megatron.planning.case import Case
from megatron.planning.estimate import estimate, step_flops
from megatron.planning.profiles import PROFILES
from megatron.planning.published import RUNS, Published
from megatron.presets import PRESETS

A100 = PROFILES["a100-80"]
LARGE = PRESETS["erlangshen-megatronbert-1.3b"]


def large(tensor: int = 1, pipeline: int = 1, data: int = 1, *, micro_batches: int = 16, **options: object) -> Case:
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, **options  # type: ignore[arg-type]
    )  # fmt: skip
    layout = Layout(tensor=tensor, pipeline=pipeline, data=data)
    return Case(
        model=LARGE, parallel=parallel, layout=layout, on_gpu=True, dtype="bf16", samples=4, sequence=512, masked=308,
        micro_batches=micro_batches,
    )  # fmt: skip


def test_model_flops_are_those_of_the_formula() -> None:
    """12 x 256, vocabulary 21,248, 16 x 128: 116.0 in linear layers, 9.7 in attention, 10.1 GFLOP in the head."""
    model = ModelConfig(
        num_layers=12, hidden_size=256, num_attention_heads=4, ffn_hidden_size=1024, max_position_embeddings=128,
        vocab_size=21248,
    )  # fmt: skip
    case = dataclasses.replace(large(micro_batches=1), model=model, samples=16, sequence=128, masked=307)
    assert step_flops(case) == pytest.approx(135.8e9, rel=1e-3)


def test_times_go_the_right_way() -> None:
    seconds = {
        name: estimate(case, A100).seconds
        for name, case in {
            "plain": large(),
            "recompute": large(recompute_granularity="full"),
            "tensor 2": large(2),
            "tensor 8": large(8),
            "tensor 16": large(16),
            "pipeline 4": large(1, 4),
            "interleaved": large(1, 4, num_layers_per_virtual_pipeline_stage=1),
            "zero-bubble": large(1, 4, pipeline_schedule="zero-bubble"),
            "long": large(micro_batches=32),
        }.items()
    }
    assert 1.25 < seconds["recompute"] / seconds["plain"] < 1.4
    assert 1.5 < seconds["plain"] / seconds["tensor 2"] < 2
    assert seconds["tensor 8"] < seconds["tensor 16"]  # 16 leave the machine
    assert 2.5 < seconds["plain"] / seconds["pipeline 4"] < 4
    assert max(seconds["interleaved"], seconds["zero-bubble"]) < seconds["pipeline 4"]
    assert 1.9 < seconds["long"] / seconds["plain"] < 2


def test_data_parallelism_costs_its_reduction_once() -> None:
    alone, near, far = (estimate(large(data=data), A100) for data in (1, 8, 64))
    assert alone.exposed == 0 < near.exposed < far.exposed
    assert estimate(large(data=64), A100, overlapped=False).exposed > far.exposed
    assert far.tokens == 64 * alone.tokens and 0 < far.mfu < alone.mfu < 1


@pytest.mark.parametrize("run", [run for run in RUNS if "340M" not in run.name], ids=lambda run: run.name)
def test_estimates_stay_near_published_runs(run: Published) -> None:
    """Within 20 %; docs/planner.md has the ratios, and says why BERT of 340M in unfused functional tests is far off."""
    seconds = estimate(run.case, PROFILES[run.gpu], overlapped=False).seconds
    assert seconds == pytest.approx(run.seconds, rel=0.2)


@pytest.mark.parametrize("run", [run for run in RUNS if run.name.startswith("GPT ")], ids=lambda run: run.name)
def test_published_shapes_have_the_published_size(run: Published) -> None:
    model, name = run.case.model, run.name.split()[1].rstrip(",")
    billions = float(name[:-1]) * (1000 if name.endswith("T") else 1)
    layers, h = model.num_layers, model.hidden_size
    parameters = 12 * layers * h * h * (1 + 13 / (12 * h)) + (51200 + 2048) * h
    assert parameters == pytest.approx(billions * 1e9, rel=0.03)
