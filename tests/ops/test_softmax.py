import math

import pytest
import torch
from torch import Tensor

from megatron.mpu.random import site_key
from megatron.ops.attention import attention_by_softmax, attention_reference
from megatron.ops.dropout import dropout_mask
from megatron.ops.softmax import softmax
from tests.ops.compare import DTYPES, Function, check
from tests.ops.places import in_all_places

pytestmark = in_all_places
SITE = site_key(3, 0)
SHAPES = [(1, 1, 1), (2, 3, 33), (3, 5, 64), (1, 2, 1000)]


def composition(lengths: Tensor | None, scale: float, probability: float, keys: Tensor | None) -> Function:
    def function(scores: Tensor) -> tuple[Tensor]:
        if lengths is not None:
            scores = scores.masked_fill(torch.arange(scores.shape[-1]) >= lengths[:, None, None], -math.inf)
        probabilities = torch.softmax(scores * scale, -1)
        if keys is not None and probability > 0.0:
            keep = dropout_mask(keys, SITE, scores.shape[-1], probability).view(scores.shape)
            probabilities = torch.where(keep, probabilities / (1.0 - probability), 0.0)
        return (probabilities,)

    return function


@pytest.mark.parametrize("probability", [0.0, 0.2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, int, int], dtype: torch.dtype, padded: bool, probability: float
) -> None:
    torch.manual_seed(math.prod(shape))
    lengths = torch.randint(1, shape[-1] + 1, shape[:1]) if padded else None
    keys = torch.randint(-(2**63), 2**63 - 1, (shape[0] * shape[1],))
    scores, scale = (4 * torch.randn(shape)).to(dtype), 0.37

    def fused(x: Tensor) -> tuple[Tensor]:
        return (softmax(x, lengths, scale=scale, probability=probability, keys=keys, site_key=SITE),)

    check(fused, composition(lengths, scale, probability, keys), [scores], [torch.randn(shape).to(dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_has_no_probability_whatever_stands_there(dtype: torch.dtype) -> None:
    scores = torch.randn(2, 4, 40).to(dtype)
    scores[0, :, 10:] = math.nan
    found = softmax(scores, torch.tensor([10, 40]), scale=1.0, probability=0.0, keys=None, site_key=SITE)
    assert (found[0, :, 10:] == 0).all()
    assert found.isfinite().all() and torch.allclose(found.float().sum(-1), torch.ones(2, 4), atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_it_equals_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    s, b, heads, size = 24, 3, 2, 16
    lengths, keys = torch.tensor([24, 9, 1]), torch.randint(-(2**63), 2**63 - 1, (b * heads * s,))
    tokens = (torch.arange(s)[:, None] < lengths).unsqueeze(-1)  # what padding itself gives is of no use

    def of(attention: object) -> Function:
        def function(qkv: Tensor) -> tuple[Tensor]:
            context = attention(qkv, lengths, probability=0.1, keys=keys, site_key=SITE)  # type: ignore[operator]
            return (context * tokens,)

        return function

    qkv = torch.randn(s, b, heads, 3, size).to(dtype)
    gradient = torch.randn(s, b, heads * size).to(dtype)
    check(of(attention_by_softmax), of(attention_reference), [qkv], [gradient])
