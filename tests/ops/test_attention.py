import math

import pytest
import torch

from megatron.mpu.context import ParallelContext
from megatron.mpu.random import dropout_keys
from megatron.ops.attention import attention, padding_bias

SINGLE = ParallelContext.single()


def reference(qkv: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    s, b, heads, _, size = qkv.shape
    q, k, v = qkv.double().permute(3, 1, 2, 0, 4)
    scores = q @ k.transpose(2, 3) / math.sqrt(size)
    scores = scores.masked_fill((torch.arange(s) >= lengths[:, None])[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).permute(2, 0, 1, 3).reshape(s, b, heads * size)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 1, 3]])
def test_equals_the_definition(lengths: list[int]) -> None:
    qkv, n = torch.randn(5, 3, 2, 3, 8), torch.tensor(lengths)
    bias = padding_bias(n, 5, qkv.dtype)
    result = attention(qkv, bias, probability=0.1, keys=None, site_key=0)
    torch.testing.assert_close(result, reference(qkv, n).float(), rtol=1e-5, atol=1e-6)


def test_the_path_with_dropout_is_the_same_function() -> None:
    """Probability so small that nothing is dropped: the explicit products against the fused kernel."""
    qkv, n = torch.randn(6, 2, 2, 3, 8, requires_grad=True), torch.tensor([6, 4])
    keys = dropout_keys(1, torch.tensor([0, 1]), sequence=6, heads=2, context=SINGLE)
    bias = padding_bias(n, 6, qkv.dtype)
    explicit = attention(qkv, bias, probability=1e-9, keys=keys.attention, site_key=0)
    fused = attention(qkv, bias, probability=0.0, keys=None, site_key=0)
    torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(fused)
    (a,) = torch.autograd.grad((explicit * weight).sum(), qkv)
    (b,) = torch.autograd.grad((fused * weight).sum(), qkv)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_bias_without_padding() -> None:
    assert padding_bias(torch.tensor([4, 4]), 4, torch.float32) is None
