"""Model FLOPs against a hand-worked figure, and against what PyTorch counts in a forward and backward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron.config import ModelConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.model import BertForPrompts, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize
from megatron.planning.flops import (
    encoder_flops,
    masked_head_flops,
    pooled_head_flops,
    pretraining_flops,
    token_head_flops,
)
from megatron.training.model import build, call

SINGLE = ParallelContext.single()
SHAPE = ModelConfig(
    num_layers=3, hidden_size=32, num_attention_heads=4, ffn_hidden_size=80, max_position_embeddings=64,
    vocab_size=101, hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
SAMPLES, LENGTH, MASKED = 5, 48, 37


def test_hand_worked() -> None:
    """12 x 256 x 4, vocabulary 21,248, 16 x 128 with 15 % masked: 116.0 + 9.7 + 10.1 GFLOP, and the binary head."""
    model = dataclasses.replace(SHAPE, num_layers=12, hidden_size=256, ffn_hidden_size=1024, vocab_size=21248)
    tokens, squares, masked = 16 * 128, 16 * 128**2, 0.15 * 16 * 128
    assert encoder_flops(model, tokens=tokens, squared_lengths=0) == pytest.approx(116.0e9, rel=1e-3)
    assert encoder_flops(model, tokens=0, squared_lengths=squares) == pytest.approx(9.7e9, rel=5e-3)
    assert masked_head_flops(model, masked) == pytest.approx(10.1e9, rel=5e-3)
    whole = pretraining_flops(model, tokens=tokens, squared_lengths=squares, masked=masked, samples=16)
    assert whole == pytest.approx(135.8e9, rel=1e-3)


def counted(forward_and_backward: Callable[[], object]) -> int:
    """FLOPs of the products of a call but those of attention, which are batched, as PyTorch counts them."""
    linear = torch.ops.mkldnn._linear_pointwise
    with FlopCounterMode(display=False, custom_mapping={linear: _linear_flops}) as counter:
        forward_and_backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm, linear))


def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


def left_out(wanted: int) -> int:
    """What is not computed behind the last attention: of the rows that no head reads."""
    h, f = SHAPE.hidden_size, SHAPE.ffn_hidden_size
    return (SAMPLES * LENGTH - wanted) * (6 * h * h + 12 * h * f)


def test_attention_is_what_pytorch_counts() -> None:
    q, k, v = (torch.rand(SAMPLES * 4, LENGTH, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        (torch.softmax(q @ k.transpose(1, 2), -1) @ v).sum().backward()
    squares = SAMPLES * LENGTH**2
    assert encoder_flops(SHAPE, tokens=0, squared_lengths=squares) == SHAPE.num_layers * counter.get_total_flops()


@pytest.mark.parametrize("binary_head", [True, False])
def test_pretraining_is_what_pytorch_counts(binary_head: bool) -> None:
    shape = dataclasses.replace(SHAPE, bert_no_binary_head=not binary_head)
    (chunk,) = build(shape, ParallelConfig(), PrecisionConfig(), 1, SINGLE).chunks
    rng = np.random.default_rng(1)
    batch = Batch(
        tokens=rng.integers(5, 101, (SAMPLES, LENGTH)),
        token_types=np.zeros((SAMPLES, LENGTH), dtype=np.int64),
        lengths=np.full(SAMPLES, LENGTH),
        masked_positions=np.sort(rng.choice(SAMPLES * LENGTH, MASKED, replace=False)),
        masked_labels=rng.integers(5, 101, MASKED),
        sop_labels=rng.integers(0, 2, SAMPLES),
        samples=np.arange(SAMPLES),
    )

    def step() -> None:
        sums = call(chunk, batch, SINGLE, None, None)
        (sums.mlm + sums.sop).backward()  # type: ignore[union-attr]

    expected = pretraining_flops(
        shape, tokens=SAMPLES * LENGTH, squared_lengths=0, masked=MASKED, samples=SAMPLES
    )
    assert counted(step) == expected - left_out(SAMPLES + MASKED)


@pytest.mark.parametrize("head", ["sequence", "token", "masked"])
def test_heads_of_tasks_are_what_pytorch_counts(head: str) -> None:
    blanks, outputs = 2, 7
    model = (
        BertForPrompts(SHAPE, SINGLE)
        if head == "masked"
        else BertForTask(SHAPE, SINGLE, num_outputs=outputs, per_token=head == "token", dropout=0.0)
    )
    initialize(model, 1)
    tokens = torch.randint(5, 101, (SAMPLES, LENGTH))
    inputs = [tokens, torch.zeros_like(tokens), torch.full((SAMPLES,), LENGTH)]
    if head == "masked":
        inputs += [torch.tensor([[3, 4]] * SAMPLES), torch.randint(5, 101, (SAMPLES, outputs, blanks))]
    found = counted(lambda: model(*inputs, keys=None).sum().backward())
    flops = {
        "sequence": pooled_head_flops(SHAPE, SAMPLES, outputs),
        "token": token_head_flops(SHAPE, SAMPLES * LENGTH, outputs),
        "masked": masked_head_flops(SHAPE, SAMPLES * blanks),
    }[head] + encoder_flops(SHAPE, tokens=SAMPLES * LENGTH, squared_lengths=0)
    wanted = {"sequence": SAMPLES, "token": SAMPLES * LENGTH, "masked": SAMPLES * blanks}[head]
    assert found == flops - left_out(wanted)


def test_frozen_layers_go_forward_only() -> None:
    whole, frozen = (encoder_flops(SHAPE, tokens=7, squared_lengths=49, frozen_layers=n) for n in (0, 3))
    assert frozen == pytest.approx(whole / 3)
