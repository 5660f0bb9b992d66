"""What is handed to apex, with stand-ins of its modules: the same arguments, computed by torch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.config import ModelConfig, OptimizerConfig, PrecisionConfig
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.ops import apex
from megatron.ops.adamw import Update, adamw_
from megatron.training.model import build, new_optimizer, use_apex_layernorm
from megatron.training.step import train_step
from tests.layouts.tiny import SHAPES, Row, micro_batch


def multi_tensor_adam(
    chunk: int, skip: Tensor, lists: list[list[Tensor]], rate: float, beta1: float, beta2: float, epsilon: float,
    step: int, mode: int, correction: int, decay: float,
) -> None:  # fmt: skip
    """The kernel's definition, of AdamW (mode 1) with corrected moments."""
    assert mode == correction == 1 and not skip.any() and skip.dtype == torch.int32
    for gradient, weight, first, second in zip(*lists, strict=True):
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        root = (second / (1 - beta2**step)).sqrt() + epsilon
        weight.sub_(rate * (first / (1 - beta1**step) / root + decay * weight))


def applier(kernel: Any, skip: Tensor, lists: list[list[Tensor]], *arguments: Any) -> None:
    kernel(65536, skip, lists, *arguments)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size, epsilon: float) -> Tensor:
    calls.append(x.shape)
    return F.layer_norm(x, tuple(shape), weight, bias, epsilon)


calls: list[torch.Size] = []


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    contents: dict[str, dict[str, object]] = {
        "amp_C": {"multi_tensor_adam": multi_tensor_adam},
        "fused_layer_norm_cuda": {},
        "apex": {},
        "apex.multi_tensor_apply": {"multi_tensor_applier": applier},
        "apex.normalization": {},
        "apex.normalization.fused_layer_norm": {"fused_layer_norm_affine": layer_norm},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def test_without_apex_or_a_gpu_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--layernorm apex needs a CUDA device"):
        apex.check("--layernorm apex", on_gpu=False)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(UserError, match="--optimizer apex-adam needs NVIDIA's apex built with"):
        apex.check("--optimizer apex-adam", on_gpu=True)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.usefixtures("stand_ins")
def test_adamw(bf16: bool) -> None:
    apex.check("--optimizer apex-adam", on_gpu=True)
    state = [torch.rand(1000) for _ in range(4)]
    theirs = [x.clone() for x in state]
    copies = [torch.zeros(1000, dtype=torch.bfloat16) if bf16 else None for _ in range(2)]
    gradients = state[1].clone()
    for step in (1, 2, 3):
        update = Update(
            factor=0.5, learning_rate=1e-2, weight_decay=0.1, beta1=0.8, beta2=0.95, epsilon=1e-6, step=step
        )
        adamw_(*state, copies[0], update)
        apex.adamw_(*theirs, copies[1], update)
    for ours, their in zip(state, theirs, strict=True):
        torch.testing.assert_close(ours, their, rtol=1e-5, atol=1e-6)
    assert torch.equal(theirs[1], gradients)  # they are reported after the step
    if copies[1] is not None:
        assert torch.equal(copies[1], theirs[0].bfloat16())


def figures(config: ModelConfig, *, by_apex: bool) -> list[float]:
    """Losses and gradient norms of some steps."""
    parallel, precision, context = Row(micro=8).parallel, PrecisionConfig(), ParallelContext.single()
    run = build(config, parallel, precision, seed=7, context=context)
    settings = OptimizerConfig(lr=1e-2, optimizer="apex-adam" if by_apex else "adam")
    optimizer = new_optimizer(run.chunks, settings, precision, parallel, context)
    if by_apex:
        use_apex_layernorm(run.chunks)
    steps = [train_step(run, optimizer, [micro_batch(8 * step, 8)], 1e-2, seed=5) for step in range(3)]
    return [number for step in steps for number in (step.totals.mlm, step.totals.sop, step.outcome.grad_norm)]


@pytest.mark.parametrize("name", ["bert", "megatron-bert, dropout"])
@pytest.mark.usefixtures("stand_ins")
def test_a_run_with_both_has_the_same_numbers(name: str) -> None:
    config = SHAPES[name]
    expected = figures(config, by_apex=False)
    assert not calls
    assert figures(config, by_apex=True) == pytest.approx(expected, rel=1e-4)
    # The embeddings' or the last one, two a layer, and that of the head, in each of three steps.
    assert len(calls) == 3 * (2 * config.num_layers + 2)
