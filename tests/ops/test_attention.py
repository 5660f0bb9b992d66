import math

import pytest
import torch
from torch import Tensor

from megatron.mpu.context import ParallelContext
from megatron.mpu.random import dropout_keys, site_key
from megatron.native import _C
from megatron.ops.attention import (
    attention,
    attention_backward,
    attention_forward,
    attention_reference,
)
from megatron.ops.dropout import dropout_mask

SINGLE = ParallelContext.single()
SITE = site_key(11, 0)
# (s, heads, head size, lengths): odd sizes, several blocks of queries and panels of columns, one token, no token.
SHAPES = [
    (1, 1, 1, [1]),
    (5, 2, 8, [5, 1, 3]),
    (24, 2, 32, [24, 24]),
    (37, 1, 31, [0, 36]),
    (129, 3, 26, [129, 77]),
    (128, 2, 64, [128, 64]),
    (70, 1, 256, [70]),
    (300, 1, 40, [299, 300]),
    (1030, 1, 16, [1030]),
]


def definition(qkv: Tensor, lengths: Tensor, probability: float, keys: Tensor | None) -> Tensor:
    """Attention in fp64 with the masks of `dropout_mask`; 0 at padding."""
    s, b, heads, _, size = qkv.shape
    q, k, v = qkv.permute(3, 1, 2, 0, 4)
    padding = torch.arange(s) >= lengths[:, None]
    scores = (q @ k.transpose(2, 3) / math.sqrt(size)).masked_fill(padding[:, None, None], -1e300)
    probabilities = scores.softmax(-1)
    if keys is not None:
        mask = dropout_mask(keys, SITE, s, probability).view(b, heads, s, s)
        probabilities = probabilities * mask / (1.0 - probability)
    context = (probabilities @ v).permute(2, 0, 1, 3).reshape(s, b, heads * size)
    return context.masked_fill(padding.t()[..., None], 0.0)


def example(
    shape: tuple[int, int, int, list[int]], dtype: torch.dtype, probability: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """qkv, lengths, dropout keys and the gradient of the context, 0 at padding."""
    s, heads, size, tokens = shape
    torch.manual_seed(s)
    b, lengths = len(tokens), torch.tensor(tokens)
    qkv = (2 * torch.randn(s, b, heads, 3, size)).to(dtype)
    keys = torch.randint(-(2**63), 2**63 - 1, (b * heads * s,)) if probability else None
    gradient = torch.randn(s, b, heads * size).to(dtype)
    return qkv, lengths, keys, gradient.masked_fill((torch.arange(s)[:, None] >= lengths)[..., None], 0.0)


def with_gradient(function, qkv: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x = qkv.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, gradient.to(y.dtype))[0]


@pytest.mark.parametrize("target", _C.attention_targets)
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, int, int, list[int]], dtype: torch.dtype, probability: float, target: str
) -> None:
    qkv, lengths, keys, gradient = example(shape, dtype, probability)
    exact = with_gradient(lambda x: definition(x, lengths, probability, keys), qkv.double(), gradient)
    composed = with_gradient(
        lambda x: attention_reference(x, lengths, probability=probability, keys=keys, site_key=SITE), qkv, gradient
    )
    torch.full_like(qkv, torch.nan)  # freed at once: the next tensor of this size is poisoned
    ours = (
        attention_forward(qkv, lengths, keys, SITE, probability, target),
        attention_backward(gradient, qkv, lengths, keys, SITE, probability, target),
    )
    unused = torch.arange(shape[0])[:, None] >= lengths
    for result, other, truth in zip(ours, composed, exact, strict=True):
        assert not result[unused].any()
        scale = truth.square().mean().sqrt().item()
        error = (result - truth)[~unused].square().mean().sqrt().item()
        other_error = (other - truth)[~unused].square().mean().sqrt().item()
        assert error <= 1.5 * other_error + torch.finfo(dtype).eps / 2 * scale  # two roundings differ by chance


def test_dropout_drops_what_the_mask_says() -> None:
    """Values that are unit vectors: the context is the matrix of probabilities."""
    n = 97
    qkv = torch.randn(n, 1, 1, 3, n)
    qkv[:, 0, 0, 2] = torch.eye(n)
    keys = dropout_keys(1, torch.tensor([7]), sequence=n, heads=1, context=SINGLE).attention
    for target in _C.attention_targets:
        for dtype in (torch.float32, torch.bfloat16):
            context = attention_forward(qkv.to(dtype), None, keys, SITE, 0.3, target)
            assert torch.equal(context[:, 0] != 0, dropout_mask(keys, SITE, n, 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_neither_on_threads_nor_on_the_batch_nor_on_padding(dtype: torch.dtype) -> None:
    qkv, lengths, _, gradient = example((130, 2, 26, [130, 41, 90]), dtype, 0.0)
    samples = torch.tensor([4, 5, 9])

    def run(qkv: Tensor, gradient: Tensor, samples: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        keys = dropout_keys(1, samples, sequence=len(qkv), heads=2, context=SINGLE).attention
        return with_gradient(lambda x: attention(x, lengths, probability=0.1, keys=keys, site_key=SITE), qkv, gradient)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        context, grad = run(qkv, gradient, samples, lengths)
        torch.set_num_threads(2)
        threaded = run(qkv, gradient, samples, lengths)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(threaded[0], context) and torch.equal(threaded[1], grad)
    n = 41
    alone = run(qkv[:n, 1:2], gradient[:n, 1:2], samples[1:2], None)
    assert torch.equal(alone[0], context[:n, 1:2]) and torch.equal(alone[1], grad[:n, 1:2])


def test_padding_is_not_read() -> None:
    qkv, lengths, keys, gradient = example((40, 2, 16, [40, 21]), torch.float32, 0.1)

    def run(qkv: Tensor) -> tuple[Tensor, Tensor]:
        return with_gradient(lambda x: attention(x, lengths, probability=0.1, keys=keys, site_key=SITE), qkv, gradient)

    clean = run(qkv)
    qkv[21:, 1] = torch.nan
    poisoned = run(qkv)
    assert torch.equal(clean[0], poisoned[0]) and torch.equal(clean[1], poisoned[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float, dtype: torch.dtype) -> None:
    """A step must see that its loss is not finite."""
    qkv = torch.randn(20, 1, 1, 3, 16).to(dtype)
    qkv[3, 0, 0, 1, 5] = value
    for target in _C.attention_targets:
        assert not attention_forward(qkv, None, None, 0, 0.0, target).isfinite().all()


def test_large_scores_do_not_overflow() -> None:
    qkv = 200 * torch.randn(50, 1, 1, 3, 32)
    context = attention(qkv, None, probability=0.0, keys=None, site_key=0)
    torch.testing.assert_close(context, definition(qkv.double(), torch.tensor([50]), 0.0, None).float())


def test_other_dtypes_take_the_reference() -> None:
    qkv, lengths, keys, _ = example((12, 2, 8, [12, 12]), torch.float64, 0.1)
    context = attention(qkv, None, probability=0.1, keys=keys, site_key=SITE)
    torch.testing.assert_close(context, definition(qkv, lengths, 0.1, keys))


def test_padding_in_any_order() -> None:
    """What a bool mask hides is as if it were not there."""
    qkv = torch.randn(9, 2, 2, 3, 8)
    tokens = torch.tensor([True, True, False, True, False, True, True, False, True])
    context = attention(qkv, (~tokens).repeat(2, 1), probability=0.0, keys=None, site_key=0)
    only = attention(qkv[tokens], None, probability=0.0, keys=None, site_key=0)
    torch.testing.assert_close(context[tokens], only)

