"""Evaluation: a stop that only one rank was asked for ends it on all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron.config import with_vocabulary
from megatron.data.batches import open_splits
from megatron.data.tokenizer import load_tokenizer
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.training.evaluation import evaluate
from megatron.training.model import build
from megatron.training.signals import StopFlag
from tests.ranks import run_ranks
from tests.training.run import config_of


def evaluate_with_a_stop_on_the_last_rank(context: ParallelContext, folder: Path, stop: bool) -> float | None:
    config = config_of(folder, eval_iters=4, tensor_model_parallel_size=context.layout.tensor)
    tokenizer = load_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
    cache = str(folder / f"cache{context.rank}")
    data = dataclasses.replace(config.data, split="50,50,0", data_cache_path=cache)
    splits = open_splits(data, seed=1, tokenizer=tokenizer)
    config = config.resolved(world_size=context.layout.world_size)
    shape = with_vocabulary(config.model, tokenizer.vocab_size)
    parallel = config.parallel.__class__(
        tensor_model_parallel_size=context.layout.tensor, pipeline_model_parallel_size=context.layout.pipeline
    )
    model = build(shape, parallel, config.precision, 1, context)
    flag = StopFlag(signalled=stop and context.rank == context.layout.world_size - 1)
    totals = evaluate(model, splits["valid"], config, context, flag)
    return None if totals is None else totals.mlm


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2), Layout(data=2)])
def test_a_stop_on_one_rank_ends_evaluation_on_all(corpus: Path, layout: Layout) -> None:
    assert run_ranks(layout, evaluate_with_a_stop_on_the_last_rank, corpus, True, seconds=30) == [None, None]
    one, two = run_ranks(layout, evaluate_with_a_stop_on_the_last_rank, corpus, False, seconds=30)
    assert one == two > 0
