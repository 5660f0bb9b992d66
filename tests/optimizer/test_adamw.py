import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

from megatron.config import OptimizerConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import LayerNorm, Linear
from megatron.mpu.sharding import initialize
from megatron.optimizer.adamw import Optimizer

CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1, clip_grad=0.5, adam_beta1=0.8, adam_beta2=0.95, adam_eps=1e-6)


def network() -> nn.Module:
    module = nn.Sequential(Linear(5, 7, std=0.5), LayerNorm(7, 1e-5), Linear(7, 3, std=0.5))
    initialize(module, 1)
    return module


def losses(module: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)).to(next(module.parameters()).dtype)
    return module(x).float().square().sum()


def test_steps_equal_torch_with_clipping_and_decay_of_matrices_only() -> None:
    ours, theirs = network(), network()
    optimizer = Optimizer([ours], CONFIG, PrecisionConfig(), ParallelContext.single())
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    for step in range(5):
        optimizer.begin_step(1)
        losses(ours, step).backward()
        reference.zero_grad()
        losses(theirs, step).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert optimizer.step(1e-2).grad_norm == pytest.approx(norm.item(), rel=1e-5)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_rates_by_parameter_are_groups_of_torch() -> None:
    """Under the frozen first layer a gradient flows all the same; it does not count in the norm."""
    factors = {"0.weight": 0.0, "0.bias": 0.0, "1.weight": 0.25, "1.bias": 0.25, "2.weight": 1.0, "2.bias": 0.5}
    ours, theirs = network(), network()
    optimizer = Optimizer([ours], CONFIG, PrecisionConfig(), ParallelContext.single(), rate_of=factors.__getitem__)
    trained = {name: parameter for name, parameter in theirs.named_parameters() if factors[name]}
    groups = [
        {"params": [parameter], "weight_decay": 0.1 if parameter.dim() >= 2 else 0.0, "lr": 1e-2 * factors[name]}
        for name, parameter in trained.items()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    first = [parameter.detach().clone() for parameter in ours[0].parameters()]
    for step in range(5):
        optimizer.begin_step(1)
        losses(ours, step).backward()
        reference.zero_grad()
        losses(theirs, step).backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), 0.5)
        assert optimizer.step(1e-2).grad_norm == pytest.approx(norm.item(), rel=1e-5)
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(first, ours[0].parameters(), strict=True))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_gradients_of_two_passes_are_added_up() -> None:
    ours, theirs = network(), network()
    optimizer = Optimizer([ours], CONFIG, PrecisionConfig(), ParallelContext.single())
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0)
    optimizer.config = dataclasses.replace(CONFIG, weight_decay=0.0)
    for step in range(0, 6, 2):
        optimizer.begin_step(1)
        losses(ours, step).backward()
        optimizer.finish_pass()
        optimizer.next_pass(1)
        losses(ours, step + 1).backward()
        reference.zero_grad()
        (losses(theirs, step) + losses(theirs, step + 1)).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert optimizer.step(1e-2).grad_norm == pytest.approx(norm.item(), rel=1e-5)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_bf16_accumulates_in_fp32_and_keeps_masters() -> None:
    """Many updates far below bf16's resolution must move the weights."""
    module = network().bfloat16()
    config = OptimizerConfig(lr=1e-5, weight_decay=0.0, clip_grad=0.0)
    optimizer = Optimizer([module], config, PrecisionConfig(bf16=True), ParallelContext.single())
    before = {piece.name: piece.tensor.clone() for piece in optimizer.weights()}
    for _ in range(3):
        optimizer.begin_step(2)
        for _ in range(2):
            losses(module, 0).backward()
        optimizer.step(1e-5)
    for piece in optimizer.weights():
        moved = (piece.tensor - before[piece.name]).abs()
        assert piece.tensor.dtype == torch.float32 and 0 < moved.max() < 1e-4
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())
    single = network().bfloat16()
    losses(single, 0).backward()
    name = "0.weight"
    accumulated = next(piece.tensor for piece in optimizer.gradients() if piece.name == name)
    torch.testing.assert_close(
        accumulated, 2 * dict(single.named_parameters())[name].grad.float(), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    module = network()
    optimizer = Optimizer([module], CONFIG, PrecisionConfig(), ParallelContext.single())
    losses(module, 0).backward()
    optimizer.step(1e-2)
    before = [p.detach().clone() for p in module.parameters()]
    moments = [moment.clone() for moment in optimizer.exp_avg]
    optimizer.begin_step(1)
    (losses(module, 1) * bad).backward()
    assert optimizer.step(1e-2).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moments, optimizer.exp_avg, strict=True)) and optimizer.steps == 1


def test_norm_is_that_of_fp64() -> None:
    module = network()
    optimizer = Optimizer([module], CONFIG, PrecisionConfig(), ParallelContext.single())
    losses(module, 0).backward()
    exact = torch.cat([p.main_grad.double().flatten() for p in module.parameters()]).norm().item()
    assert optimizer.flat.gradient_norm() == pytest.approx(exact, rel=1e-12)


def test_moments_and_weights_are_views_by_global_name() -> None:
    module = network()
    optimizer = Optimizer([module], CONFIG, PrecisionConfig(), ParallelContext.single())
    weights = {piece.name: piece.tensor for piece in optimizer.weights()}
    assert set(weights) == {name for name, _ in module.named_parameters()}
    moments = [piece.name for piece in optimizer.moments()]
    assert sorted(moments) == sorted(f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in weights)
    weights["0.bias"].fill_(3.0)
    optimizer.publish()
    assert torch.equal(module[0].bias, torch.full((7,), 3.0))


def test_what_nobody_trains_any_more_is_freed() -> None:
    module = network()
    optimizer = Optimizer([module], CONFIG, PrecisionConfig(), ParallelContext.single())
    optimizer.begin_step(1)
    losses(module, 0).backward()
    optimizer.step(1e-2)
    gradients = weakref.ref(optimizer.flat.buckets[0].gradients)
    del module, optimizer
    gc.collect()
    assert gradients() is None
