"""The planner's communication against what the groups of real steps have counted: every call and every byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from megatron.data.batches import Batch
from megatron.mpu.context import ParallelContext
from megatron.planning.case import Case
from megatron.planning.communication import step_traffic
from megatron.training.step import train_step
from tests.layouts.tiny import GLOBAL_BATCH, SEQUENCE, SHAPES, micro_batch
from tests.planning.measured import built, case
from tests.ranks import run_ranks

TP, PP, SP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"
ZERO, VIRTUAL, AGAIN = "use_distributed_optimizer", "num_layers_per_virtual_pipeline_stage", "recompute_granularity"
SCHEDULE = "pipeline_schedule"


def tiny(options: dict[str, object], shape: str = "megatron-bert, dropout", *, data: int = 1, samples: int = 4) -> Case:
    """A step of the layout table. Its samples have unequal numbers of masked tokens, which are counted later."""
    return case(
        {"ddp_bucket_size": 4000, **options},
        model=dataclasses.replace(SHAPES[shape], num_layers=4),
        data=data,
        samples=samples,
        sequence=SEQUENCE,
        masked=0,
        micro_batches=GLOBAL_BATCH // data // samples,
    )


STEPS = {
    "tensor 2": tiny({TP: 2}),
    "sequence 2": tiny({TP: 2, SP: True}, "bert"),
    "pipeline 2": tiny({PP: 2}),
    "interleaved 2 x 2": tiny({PP: 2, VIRTUAL: 1}, "bert", samples=2),
    "one stage of 2 chunks": tiny({"pipeline_split": "1,3", SCHEDULE: "interleaved"}),
    "zero-bubble 2": tiny({PP: 2, SCHEDULE: "zero-bubble"}, samples=2),
    "data 2": tiny({}, data=2),
    "ZeRO data 2, bf16": dataclasses.replace(tiny({ZERO: True}, data=2), dtype="bf16"),
    "tensor 2, pipeline 2, data 2": tiny({TP: 2, PP: 2}, data=2),
    "ZeRO data 2, sequence 2, pipeline 2 x 2": tiny(
        {ZERO: True, TP: 2, SP: True, PP: 2, VIRTUAL: 1}, data=2, samples=2
    ),
    "full, tensor 2, no dropout": tiny({TP: 2, AGAIN: "full"}, "megatron-bert, no binary head"),
    "full, sequence 2, stretches of 3, no dropout": tiny(
        {TP: 2, SP: True, AGAIN: "full", "recompute_num_layers": 3}, "megatron-bert, no binary head"
    ),
    "full, sequence 2, block of 1, no dropout, bert": tiny(
        {TP: 2, SP: True, AGAIN: "full", "recompute_method": "block", "recompute_num_layers": 1},
        "bert, no dropout, no binary head",
    ),
    "selective, sequence 2": tiny({TP: 2, SP: True, AGAIN: "selective"}, samples=8),
}

Counted = Mapping[tuple[str, str], int]


def step(context: ParallelContext, what: Case) -> tuple[Counted, Counted, int]:
    """Calls and bytes of a step, and the masked tokens of the rank's share of it."""
    model, optimizer = built(context, what)
    share = GLOBAL_BATCH // what.layout.data
    first = context.data.rank * share
    batches: list[Batch] = [micro_batch(first + offset, what.samples) for offset in range(0, share, what.samples)]
    traffic = context.world.traffic
    for counted in (traffic.calls, traffic.bytes):
        counted.clear()
    train_step(model, optimizer, batches, 1e-3, seed=5)
    return dict(traffic.calls), dict(traffic.bytes), sum(len(batch.masked_positions) for batch in batches)


@pytest.mark.parametrize("name", STEPS)
def test_every_call_and_byte_is_foreseen(name: str) -> None:
    what = STEPS[name]
    for rank, (calls, size, masked) in enumerate(run_ranks(what.layout, step, what)):
        foreseen = step_traffic(what, rank, masked)
        assert foreseen.calls == calls, rank
        assert foreseen.bytes == size, rank
