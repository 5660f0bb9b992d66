"""Impossible layouts are refused before any process waits for another: all violations at once, with values that fit."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from megatron.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, PretrainConfig, TrainingConfig
from megatron.errors import UserError
from tests.commands import run

TP, PP, SP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"
VIRTUAL, SPLIT, SCHEDULE = "num_layers_per_virtual_pipeline_stage", "pipeline_split", "pipeline_schedule"


def configuration(parallel: dict[str, Any], *, batch: int = 0, **model: Any) -> PretrainConfig:
    """24 layers of 16 heads; changed as a case says."""
    shape = {"num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "max_position_embeddings": 512} | model
    return PretrainConfig(
        model=ModelConfig(vocab_size=21128, **shape),
        parallel=ParallelConfig(**parallel),
        data=DataConfig(data_path=("a",), seq_length=510, vocab_file="vocab.txt"),
        optimizer=OptimizerConfig(lr=1e-3),
        training=TrainingConfig(micro_batch_size=4, global_batch_size=batch, train_iters=10),
    )


# Options, processes, global batch, model; then what the message must hold: the violation and values that fit.
RULES: dict[str, tuple[dict[str, Any], int, int, dict[str, Any], tuple[str, ...]]] = {
    "no tensor size": ({TP: 0}, 8, 0, {}, ("--tensor-model-parallel-size must be at least 1",)),
    "negative stages": ({PP: -2}, 8, 0, {}, ("--pipeline-model-parallel-size must be at least 1",)),
    "empty buckets": ({"ddp_bucket_size": 0}, 8, 0, {}, ("--ddp-bucket-size must be at least 1",)),
    "heads": ({TP: 6}, 6, 0, {}, ("6 does not divide --num-attention-heads 16; nearest that do: 2, 4, 8",)),
    "heads of the model": ({}, 8, 0, {"num_attention_heads": 15}, ("--hidden-size 1024; nearest that do: 4, 8, 16",)),
    "MLP": ({TP: 8}, 8, 0, {"ffn_hidden_size": 4100}, ("8 does not divide --ffn-hidden-size 4100; nearest", "5, 10")),
    "processes": ({TP: 2, PP: 3}, 8, 0, {}, ("8 processes cannot be divided", "nearest numbers of processes: 6 or 12")),
    "too few processes": ({TP: 16}, 8, 0, {}, ("nearest numbers of processes: 16",)),
    "sequence without tensor": ({SP: True}, 8, 0, {}, ("needs --tensor-model-parallel-size above 1",)),
    "sequence": ({TP: 4, SP: True}, 8, 0, {}, ("4 divides, not 510; nearest: 508 or 512",)),
    "more stages than layers": ({PP: 32}, 32, 0, {}, ("32 is above --num-layers 24; at most 24",)),
    "virtual stages": ({PP: 4, VIRTUAL: 5}, 8, 0, {}, ("5 x 4 stages does not divide --num-layers 24", "2, 3, 6")),
    "virtual stages of none": ({PP: 5, VIRTUAL: 2}, 5, 0, {}, ("nearest that do: none; --pipeline-split states",)),
    "split of words": ({PP: 2, SPLIT: "12,b"}, 8, 0, {}, ("12,b is not a list of numbers like 7,6,6,5",)),
    "split of other sum": ({PP: 4, SPLIT: "7,6,6,6"}, 8, 0, {}, ("--num-layers 24", "sums to 25; e.g. 6,6,6,6")),
    "split of other length": ({PP: 5, SPLIT: "12,12"}, 5, 0, {}, ("it has 2", "e.g. 5,5,5,5,4")),
    "split with an empty part": ({PP: 2, SPLIT: "24,0"}, 8, 0, {}, ("must be positive", "e.g. 12,12")),
    "split and virtual stages": ({PP: 2, SPLIT: "12,12", VIRTUAL: 6}, 8, 0, {}, ("--pipeline-split excludes",)),
    "schedule of one chunk": ({PP: 2, VIRTUAL: 6, SCHEDULE: "zero-bubble"}, 8, 0, {}, ("not 2; use interleaved",)),
    "interleaved without chunks": ({PP: 2, SCHEDULE: "interleaved"}, 8, 0, {}, ("interleaved needs --num-layers-per",)),
    "batch": ({}, 8, 40, {}, ("40 is not a multiple", "4 x data-parallel size 8; nearest: 32 or 64")),
    "small batch": ({}, 8, 7, {}, ("7 is not a multiple", "nearest: 32")),
    "recomputation": ({"recompute_num_layers": 0}, 8, 0, {}, ("needs --recompute-granularity full", "at least 1")),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_layout_that_cannot_be_is_refused_with_what_can(name: str) -> None:
    parallel, processes, batch, model, messages = RULES[name]
    with pytest.raises(UserError) as error:
        configuration(parallel, batch=batch, **model).resolved(world_size=processes)
    for message in messages:
        assert message in str(error.value)


def test_values_that_are_named_do_fit() -> None:
    for tensor, processes in ((4, 8), (8, 8)):
        configuration({TP: tensor}).resolved(world_size=processes)
    for layers in (2, 3, 6):
        configuration({PP: 4, VIRTUAL: layers}).resolved(world_size=8)
    for split in ("6,6,6,6", "12,12"):
        configuration({PP: split.count(",") + 1, SPLIT: split}).resolved(world_size=4)
    for length in (508, 512):
        config = configuration({TP: 4, SP: True})
        dataclasses.replace(config, data=dataclasses.replace(config.data, seq_length=length)).resolved(world_size=8)
    for batch in (32, 64):
        configuration({}, batch=batch).resolved(world_size=8)


def test_a_vocabulary_of_any_size_fits() -> None:
    """Rows are padded on each rank, so no number of tensor-parallel processes is impossible for a vocabulary."""
    configuration({TP: 16}).resolved(world_size=16)


@pytest.mark.parametrize("rank", ["0", "3"])
def test_no_rank_waits_for_another(rank: str) -> None:
    """As torchrun would start one of 6 processes, but nobody listens: meeting the others would hang."""
    flags = (
        "--preset roberta-tiny-clue --tensor-model-parallel-size 5 --pipeline-model-parallel-size 8 --seq-length 128 "
        "--sequence-parallel --micro-batch-size 4 --global-batch-size 10 --data-path a --vocab-file v --lr 1e-3 "
        "--train-iters 5 --recompute-method block"
    )
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "6", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    started = time.monotonic()
    result = run("pretrain_bert.py", *flags.split(), environment=torchrun)
    assert time.monotonic() - started < 60
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("pretrain_bert.py: error: 7 problems:\n")
    for message in (
        "6 processes cannot be divided into --tensor-model-parallel-size 5 x --pipeline-model-parallel-size 8; nearest "
        "numbers of processes: 40",
        "does not divide --num-attention-heads 12; nearest that do: 3, 4, 6",
        "does not divide --ffn-hidden-size 1248; nearest that do: 3, 4, 6",
        "--pipeline-model-parallel-size 8 is above --num-layers 4; at most 4",
        "--tensor-model-parallel-size 5 divides, not 128; nearest: 125 or 130",
        "--recompute-method needs --recompute-granularity full",
        "--global-batch-size 10 is not a multiple of --micro-batch-size 4 x data-parallel size 1; nearest: 8 or 12",
    ):
        assert message in result.stderr
