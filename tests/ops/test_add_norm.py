import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.mpu.random import site_key
from megatron.ops.add_norm import NO_DROPOUT, Kept, Norm, add, add_norm, layernorm
from megatron.ops.dropout import dropout_mask
from tests.ops.compare import DTYPES, Function, check, with_gradients
from tests.ops.places import in_all_places

pytestmark = in_all_places

SITE = site_key(4, 2)
EPSILON = 1e-5
SHAPES = [(1, 1), (5, 1), (1, 33), (7, 33), (2, 16, 312), (4, 1000), (0, 33)]
# What of the results is used: a pre-LayerNorm layer both, a post-LayerNorm layer the normalized only.
USES = ["both", "sum", "normalized", "no LayerNorm", "no block"]


def kept_of(rows: int, probability: float) -> Kept:
    if probability == 0.0:
        return NO_DROPOUT
    return Kept(probability=probability, keys=torch.randint(-(2**63), 2**63 - 1, (rows,)), site_key=SITE)


def fused(use: str, kept: Kept) -> Function:
    def function(block: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        norm = Norm(weight=weight, shift=shift, epsilon=EPSILON)
        if use == "no LayerNorm":
            return (add(block, bias, residual, kept),)
        if use == "no block":
            return (layernorm(residual, norm),)
        total, normalized = add_norm(block, bias, residual, kept, norm)
        return {"both": (total, normalized), "sum": (total,), "normalized": (normalized,)}[use]

    return function


def composition(use: str, kept: Kept) -> Function:
    """The same of torch's operations, with the masks of `dropout_mask`."""

    def function(block: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        branch = block + bias
        if kept.keys is not None:
            keep = dropout_mask(kept.keys, SITE, len(bias), kept.probability).view(block.shape)
            branch = torch.where(keep, branch / (1.0 - kept.probability), 0.0)
        total = residual if use == "no block" else residual + branch
        normalized = F.layer_norm(total, weight.shape, weight, shift, EPSILON)
        return {"both": (total, normalized), "sum": (total,), "no LayerNorm": (total,)}.get(use, (normalized,))

    return function


def example(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """block, bias, residual, weight, shift."""
    torch.manual_seed(math.prod(shape))
    rows, columns = shape, shape[-1:]
    sizes = [rows, columns, rows, columns, columns]
    return [(torch.randn(size) + (i == 3)).to(dtype) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, ...], dtype: torch.dtype, probability: float, use: str
) -> None:
    inputs = example(shape, dtype)
    kept = kept_of(math.prod(shape[:-1]), probability)
    of_outputs = [torch.randn(shape).to(dtype) for _ in range(2 if use == "both" else 1)]
    check(fused(use, kept), composition(use, kept), inputs, of_outputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_drops_what_the_mask_says(dtype: torch.dtype) -> None:
    kept = kept_of(50, 0.3)
    block, zeros, ones = torch.ones(50, 97, dtype=dtype), torch.zeros(97, dtype=dtype), torch.ones(97, dtype=dtype)
    assert kept.keys is not None
    expected = dropout_mask(kept.keys, SITE, 97, 0.3)
    for use in ("no LayerNorm", "sum"):
        inputs = block, zeros, torch.zeros_like(block), ones, zeros
        total, of_block, of_bias, *_ = with_gradients(fused(use, kept), inputs, [block])
        assert torch.equal(total != 0, expected) and torch.equal(of_block != 0, expected)
        torch.testing.assert_close(of_bias, (expected.sum(0) / 0.7).to(dtype))


@pytest.mark.parametrize("mean", [100.0, -1e4])
def test_rows_far_from_zero_keep_the_digits_that_are_in_them(mean: float) -> None:
    residual = torch.randn(9, 1000) + mean
    weight, shift, gradient = torch.ones(1000), torch.zeros(1000), torch.randn(9, 1000)
    norm = fused("no block", NO_DROPOUT)
    inputs = [residual, shift, residual, weight, shift]
    exact = with_gradients(composition("no block", NO_DROPOUT), [x.double() for x in inputs], [gradient])
    for result, truth in zip(with_gradients(norm, inputs, [gradient]), exact, strict=True):
        assert (result - truth).norm() <= 2 * torch.finfo(torch.float32).eps * abs(mean) * truth.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_in_its_row(value: float, dtype: torch.dtype) -> None:
    inputs = example((6, 40), dtype)
    inputs[0][3, 5] = value
    total, normalized = fused("both", NO_DROPOUT)(*inputs)
    other_rows = torch.arange(6) != 3
    assert not total[3, 5].isfinite() and not normalized[3].isfinite().any()
    assert total[other_rows].isfinite().all() and normalized[other_rows].isfinite().all()
    of_outputs = [torch.ones_like(total), torch.zeros_like(total)]
    of_outputs[0][2, 7] = value
    of_bias = with_gradients(fused("both", kept_of(6, 0.0)), example((6, 40), dtype), of_outputs)[3]
    assert torch.equal(~of_bias.isfinite(), torch.arange(40) == 7)


def test_strides_do_not_matter() -> None:
    """Of inputs, and of gradients: that of a sum has no memory of its own."""
    kept = kept_of(15, 0.1)
    block, bias, residual, weight, shift = example((3, 5, 33), torch.float32)
    plain = with_gradients(fused("both", kept), [block, bias, residual, weight, shift], [torch.ones(3, 5, 33)] * 2)
    leaves = [block.transpose(0, 2).contiguous(), bias, residual.transpose(0, 1).contiguous(), weight, shift]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outputs = fused("both", kept)(leaves[0].transpose(0, 2), bias, leaves[2].transpose(0, 1), weight, shift)
    (outputs[0].sum() + outputs[1].sum()).backward()
    gradients = [leaf.grad for leaf in leaves]
    assert gradients[0] is not None and gradients[2] is not None
    strided = [*outputs, gradients[0].transpose(0, 2), gradients[1], gradients[2].transpose(0, 1), *gradients[3:]]
    for a, b in zip(strided, plain, strict=True):
        assert a is not None and torch.equal(a, b)
