import dataclasses
import math

import pytest
import torch
from torch import Tensor

from megatron.ops.adamw import Update, adamw_, sum_of_squares
from tests.ops.compare import THREADS, assert_no_worse, new_memory_is_nan
from tests.ops.places import in_all_places

pytestmark = in_all_places

UPDATE = Update(factor=0.7, learning_rate=1e-2, weight_decay=0.1, beta1=0.9, beta2=0.999, epsilon=1e-6, step=1)
STEPS = 4


def example(size: int) -> tuple[Tensor, list[Tensor]]:
    """Weights, and a gradient for each step."""
    torch.manual_seed(size)
    return torch.randn(size), [torch.randn(size) * 10.0**-step for step in range(STEPS)]


def of_torch(weights: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Weights and moments after the steps of torch.optim.AdamW."""
    parameter = torch.nn.Parameter(weights.clone())
    betas = UPDATE.beta1, UPDATE.beta2
    optimizer = torch.optim.AdamW([parameter], UPDATE.learning_rate, betas, UPDATE.epsilon, UPDATE.weight_decay)
    for gradient in gradients:
        parameter.grad = UPDATE.factor * gradient.to(weights.dtype)
        optimizer.step()
    state = optimizer.state[parameter]
    return [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]


def ours(weights: Tensor, gradients: list[Tensor], copy: Tensor | None) -> list[Tensor]:
    held = [weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights)]
    for step, gradient in enumerate(gradients, 1):
        adamw_(held[0], gradient, held[1], held[2], copy, dataclasses.replace(UPDATE, step=step))
    return held


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0, 1, 33, 1000, 10_007])
def test_equals_torch_and_writes_the_copy(size: int, dtype: torch.dtype) -> None:
    weights, gradients = example(size)
    exact, composed = of_torch(weights.double(), gradients), of_torch(weights, gradients)
    for threads in THREADS:
        with new_memory_is_nan(threads):
            copy = torch.empty(size, dtype=dtype)
            copied, alone = ours(weights, gradients, copy), ours(weights, gradients, None)
        if dtype == torch.bfloat16:
            assert all(torch.equal(a, b) for a, b in zip(copied, alone, strict=True))
        assert_no_worse(copied, composed, exact)
        assert torch.equal(copy, copied[0].to(dtype))


def test_a_part_of_memory_leaves_the_rest_alone() -> None:
    """A run of parameters that are treated alike starts and ends where it does."""
    weights, gradients = example(100)
    whole = ours(weights, gradients, None)
    held = [weights.clone(), torch.zeros(100), torch.zeros(100)]
    copy, part = torch.full((100,), 9.0, dtype=torch.bfloat16), slice(3, 90)
    for step, gradient in enumerate(gradients, 1):
        update = dataclasses.replace(UPDATE, step=step)
        adamw_(held[0][part], gradient[part], held[1][part], held[2][part], copy[part], update)
    for found, expected, before in zip(held, whole, (weights, torch.zeros(100), torch.zeros(100)), strict=True):
        assert torch.equal(found[part], expected[part])
        assert torch.equal(found[:3], before[:3]) and torch.equal(found[90:], before[90:])
    assert torch.equal(copy[part], held[0][part].bfloat16()) and (copy[:3] == 9).all() and (copy[90:] == 9).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    weights, gradients = example(50)
    gradients[0][17] = value
    copy = torch.empty(50, dtype=torch.bfloat16)
    held = ours(weights, gradients[:1], copy)
    for found in (*held[1:], held[0], copy):
        assert torch.equal(~found.isfinite(), torch.arange(50) == 17)


@pytest.mark.parametrize("size", [0, 1, 33, 100_003])
def test_sum_of_squares_is_that_of_fp64(size: int) -> None:
    torch.manual_seed(size)
    x = torch.randn(size) * 1e25  # fp32 has no squares of these
    for threads in THREADS:
        with new_memory_is_nan(threads):
            found = sum_of_squares(x)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, x.double().square().sum(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_sum_shows_what_is_not_finite(value: float) -> None:
    x = torch.ones(1000)
    x[777] = value
    assert not sum_of_squares(x).isfinite()
