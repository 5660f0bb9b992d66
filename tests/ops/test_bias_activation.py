import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ops.bias_activation import ActivationName, bias_activation
from tests.ops.compare import DTYPES, Function, check, with_gradients
from tests.ops.places import in_all_places

pytestmark = in_all_places

SHAPES = [(1, 1), (5, 1), (1, 33), (7, 33), (2, 16, 312), (4, 1000), (0, 33)]
ACTIVATIONS: list[ActivationName] = ["gelu", "gelu_new", "relu"]


def fused(activation: ActivationName) -> Function:
    return lambda x, bias: (bias_activation(x, bias, activation),)


def composition(activation: ActivationName) -> Function:
    function = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[activation]
    return lambda x, bias: (function(x + bias),)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, ...], dtype: torch.dtype, activation: ActivationName
) -> None:
    torch.manual_seed(math.prod(shape))
    inputs = [(2 * torch.randn(shape)).to(dtype), torch.randn(shape[-1:]).to(dtype)]
    check(fused(activation), composition(activation), inputs, [torch.randn(shape).to(dtype)])


def gelu_terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x) = x F(x) without cancellation, as F(x) and the slope's other summand, x F'(x)."""
    return torch.special.erfc(-x / math.sqrt(2)) / 2, x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_new_terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the approximation by tanh, which is a logistic function of twice its argument."""
    double = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return torch.sigmoid(double), x * torch.sigmoid(double) * torch.sigmoid(-double) * slope


@pytest.mark.parametrize(
    ("activation", "terms", "lowest"), [("gelu", gelu_terms, -12.8), ("gelu_new", gelu_new_terms, -9.5)]
)
def test_digits_are_kept_far_in_the_tails(activation: ActivationName, terms: Function, lowest: float) -> None:
    """Down to the smallest fp32 numbers, where 1 + erf would have lost them all."""
    x = torch.linspace(lowest, 12.0, 4001)
    value, gradient, _ = with_gradients(fused(activation), [x[:, None], torch.zeros(1)], [torch.ones(4001, 1)])
    share, other = terms(x.double())
    torch.testing.assert_close(value[:, 0].double(), x * share, rtol=2e-5, atol=0.0)
    error = (gradient[:, 0] - (share + other)).abs() / (share + other.abs())
    assert error.max() < 2e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values(activation: ActivationName) -> None:
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4]])
    value, gradient, _ = with_gradients(fused(activation), [x, torch.zeros(4)], [torch.ones(1, 4)])
    torch.testing.assert_close(value, x.clamp_min(0), rtol=0, atol=1e-30)
    torch.testing.assert_close(gradient, (x > 0).float(), rtol=0, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_so(activation: ActivationName, dtype: torch.dtype) -> None:
    x = torch.randn(5, 40).to(dtype)
    x[1, 2], x[3, 7] = math.nan, math.inf
    bad = ~x.isfinite()
    ones, bias = torch.ones_like(x), torch.zeros(40, dtype=dtype)
    value = bias_activation(x, bias, activation)
    assert torch.equal(~value.isfinite(), bad) and value[1, 2].isnan()
    for given in (torch.where(x.isnan(), math.nan, ones), torch.where(bad, math.inf, ones)):
        finite = torch.where(bad, 1.0, x)
        _, of_x, of_bias = with_gradients(fused(activation), [finite, bias], [given])
        assert torch.equal(~of_x.isfinite(), ~given.isfinite())
        assert torch.equal(~of_bias.isfinite(), ~given.isfinite().all(0))


def test_strides_do_not_matter() -> None:
    x, bias = torch.randn(33, 5, requires_grad=True), torch.randn(33, requires_grad=True)
    y = bias_activation(x.t(), bias, "gelu")
    y.sum().backward()
    plain = with_gradients(fused("gelu"), [x.t().contiguous(), bias], [torch.ones(5, 33)])
    assert x.grad is not None and bias.grad is not None
    for a, b in zip((y, x.grad.t(), bias.grad), plain, strict=True):
        assert torch.equal(a, b)
