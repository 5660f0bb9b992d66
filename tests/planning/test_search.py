"""The search: every layout it finds keeps the rules and fits, and what was given stays."""

from __future__ import annotations

import dataclasses

import pytest

from megatron.config import (
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    PretrainConfig,
    TrainingConfig,
)
from megatron.errors import UserError
from megatron.planning.case import for_planning
from megatron.planning.profiles import PROFILES
from megatron.planning.search import RESERVED, candidates, recommended

A100 = PROFILES["a100-80"]
SHAPE = ModelConfig(
    num_layers=12, hidden_size=768, num_attention_heads=12, max_position_embeddings=512, vocab_size=21128
)


def wanted(**parallel: object) -> PretrainConfig:
    return for_planning(
        PretrainConfig(
            model=SHAPE,
            parallel=ParallelConfig(**parallel),  # type: ignore[arg-type]
            data=DataConfig(seq_length=512),
            precision=PrecisionConfig(bf16=True),
            training=TrainingConfig(global_batch_size=48),
        )
    )


def test_layouts_keep_the_rules_and_fit() -> None:
    found = candidates(wanted(), 12, A100, 4.0)
    assert found and all(c.fits and c.memory.total <= 4.0 * 2**30 * (1 - RESERVED) for c in found)
    for candidate in found:
        assert candidate.config.problems(12) == []
        assert candidate.case.micro_batches * candidate.case.samples * candidate.case.layout.data == 48
    times = [candidate.estimate.seconds for candidate in found]
    assert times == sorted(times)
    best = recommended(found)
    assert best is not None and best.estimate.seconds <= 1.02 * times[0]
    layouts = {(c.case.layout.tensor, c.case.layout.pipeline) for c in found}
    assert {(1, 1), (2, 1), (4, 3), (1, 12), (3, 4)} <= layouts


def test_less_memory_brings_recomputation_and_sharding() -> None:
    roomy, tight = (candidates(wanted(), 4, A100, memory) for memory in (60.0, 0.9))
    assert all(c.case.parallel.recompute_granularity is None for c in roomy if c.case.samples == 1)
    assert {c.case.parallel.recompute_granularity for c in tight} >= {"selective", "full"}
    assert len({c.case.parallel for c in tight}) < len({c.case.parallel for c in roomy})


def test_what_is_given_stays() -> None:
    for candidate in candidates(
        wanted(tensor_model_parallel_size=2, recompute_granularity="full", pipeline_schedule="zero-bubble"), 8, A100, 80
    ):
        parallel = candidate.case.parallel
        assert (parallel.tensor_model_parallel_size, parallel.recompute_granularity) == (2, "full")
        assert parallel.pipeline_schedule == "zero-bubble"


def test_nothing_fits() -> None:
    found = candidates(wanted(), 4, A100, 0.05)
    assert found and not any(c.fits for c in found) and recommended(found) is None
    totals = [c.memory.total for c in found]
    assert totals == sorted(totals)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="heads 12; nearest that do: 3, 4, 6"):
        candidates(wanted(tensor_model_parallel_size=5), 10, A100, 80)
    config = wanted()
    odd = dataclasses.replace(config, training=dataclasses.replace(config.training, micro_batch_size=32))
    with pytest.raises(UserError, match="not a multiple"):
        candidates(odd, 4, A100, 80)
