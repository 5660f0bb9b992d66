"""What the layout table must catch: three mistakes of other engines, each made on purpose in the ranks of a row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron.mpu import layers
from megatron.mpu.context import ParallelContext
from megatron.mpu.group import Group
from megatron.training import step
from tests.layouts.test_layouts import LAYOUTS
from tests.layouts.tiny import GLOBAL_BATCH, Row, train
from tests.ranks import run_ranks

SHAPE = "megatron-bert, dropout"


def without_the_sum_of_tied_tables(context: ParallelContext, row: Row) -> dict[str, Any]:
    alone = dataclasses.replace(context, embedding=Group(name="embedding", rank=context.embedding.rank))
    return train(alone, row, shapes=(SHAPE,))


def without_the_sums_of_sequence_parallel_parameters(context: ParallelContext, row: Row) -> dict[str, Any]:
    made = layers.new_parameter
    layers.new_parameter = lambda *a, partial=False, **k: made(*a, **k)  # type: ignore[assignment]
    return train(context, row, shapes=(SHAPE,))


def with_a_mean_of_each_micro_batch(context: ParallelContext, row: Row) -> dict[str, Any]:
    """Megatron-LM's objective: the mean over a micro-batch's masked tokens, then over micro-batches."""
    call, count = step.call, step.count
    masked: list[float] = []

    def count_and_keep(*arguments: Any) -> Any:
        counts = count(*arguments)
        masked.append(counts.masked)
        return counts

    def mean(chunk: Any, batch: Any, *rest: Any) -> Any:
        output = call(chunk, batch, *rest)
        factor = masked[-1] * len(batch.samples) / GLOBAL_BATCH / max(len(batch.masked_positions), 1)
        return dataclasses.replace(output, mlm=output.mlm * factor) if hasattr(output, "mlm") else output

    step.call, step.count = mean, count_and_keep  # type: ignore[assignment]
    return train(context, row, shapes=(SHAPE,))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (without_the_sum_of_tied_tables, "pipeline 2"),
        (without_the_sums_of_sequence_parallel_parameters, "sequence 2"),
        (with_a_mean_of_each_micro_batch, "data 2, 4 micro-batches"),
    ],
)
def test_a_wrong_implementation_fails_the_table(wrong: Any, name: str) -> None:
    right = train(ParallelContext.single(), Row(micro=8), shapes=(SHAPE,))[SHAPE]
    (found, *_) = run_ranks(LAYOUTS[name].layout, wrong, LAYOUTS[name])
    assert found[SHAPE]["norm"] != pytest.approx(right["norm"], rel=1e-4)
    assert found[SHAPE]["mlm"][1:] != pytest.approx(right["mlm"][1:], rel=1e-5)
