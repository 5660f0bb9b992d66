"""The references of the fused operations, in fp64: values of torch.nn.functional, gradients of finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from megatron.ops.add_norm import Kept, Norm, add, add_norm, layernorm
from megatron.ops.attention import attention_by_softmax, attention_reference
from megatron.ops.bias_activation import bias_activation
from megatron.ops.cross_entropy import logits_to_gradients, row_statistics
from megatron.ops.dropout import dropout, dropout_mask
from megatron.ops.embedding import embedding_sum
from megatron.ops.softmax import softmax

ROWS, COLUMNS, SITE, PROBABILITY = 4, 6, 11, 0.3
KEYS = torch.arange(ROWS) * 7919
EPSILON = 1e-5
IDS = torch.tensor([0, 3, 6, 3])
LENGTHS, S, B, HEADS, SIZE = torch.tensor([5, 3]), 5, 2, 2, 3
ATTENTION_KEYS = torch.arange(B * HEADS * S) * 104729


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def kept(x: Tensor, probability: float = PROBABILITY) -> Tensor:
    """Dropout by its mask."""
    return x * dropout_mask(KEYS, SITE, COLUMNS, probability) / (1 - probability)


KEPT = Kept(probability=PROBABILITY, keys=KEYS, site_key=SITE)

Function = Callable[..., Tensor]
# Name: ours, the definition, shapes of the inputs.
CASES: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "dropout": (lambda x: dropout(x, PROBABILITY, KEYS, SITE), kept, [(ROWS, COLUMNS)]),
    "bias + gelu": (
        lambda x, bias: bias_activation(x, bias, "gelu"),
        lambda x, bias: F.gelu(x + bias),
        [(ROWS, COLUMNS), (COLUMNS,)],
    ),
    "bias + gelu of tanh": (
        lambda x, bias: bias_activation(x, bias, "gelu_new"),
        lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        [(ROWS, COLUMNS), (COLUMNS,)],
    ),
    "bias + relu": (
        lambda x, bias: bias_activation(x, bias, "relu"),
        lambda x, bias: F.relu(x + bias),
        [(ROWS, COLUMNS), (COLUMNS,)],
    ),
    "LayerNorm": (
        lambda x, weight, shift: layernorm(x, Norm(weight=weight, shift=shift, epsilon=EPSILON)),
        lambda x, weight, shift: F.layer_norm(x, (COLUMNS,), weight, shift, EPSILON),
        [(ROWS, COLUMNS), (COLUMNS,), (COLUMNS,)],
    ),
    "bias + dropout + residual": (
        lambda block, bias, residual: add(block, bias, residual, KEPT),
        lambda block, bias, residual: residual + kept(block + bias),
        [(ROWS, COLUMNS), (COLUMNS,), (ROWS, COLUMNS)],
    ),
    "bias + dropout + residual, LayerNorm": (
        lambda block, bias, residual, weight, shift: torch.stack(
            add_norm(block, bias, residual, KEPT, Norm(weight=weight, shift=shift, epsilon=EPSILON))
        ),
        lambda block, bias, residual, weight, shift: torch.stack(
            [
                residual + kept(block + bias),
                F.layer_norm(residual + kept(block + bias), (COLUMNS,), weight, shift, EPSILON),
            ]
        ),
        [(ROWS, COLUMNS), (COLUMNS,), (ROWS, COLUMNS), (COLUMNS,), (COLUMNS,)],
    ),
    "softmax + dropout": (
        lambda x: softmax(x, None, scale=0.5, probability=PROBABILITY, keys=KEYS, site_key=SITE),
        lambda x: kept(F.softmax(0.5 * x, -1)[0]).unsqueeze(0),
        [(1, ROWS, COLUMNS)],
    ),
    "embeddings": (
        lambda words, types: embedding_sum([IDS, IDS % 2], [words, types]),
        lambda words, types: F.embedding(IDS, words) + F.embedding(IDS % 2, types),
        [(7, COLUMNS), (2, COLUMNS)],
    ),
    "attention": (
        lambda qkv: attention_reference(qkv, None, probability=0.0, keys=None, site_key=0),
        lambda qkv: attended(qkv, None),
        [(S, B, HEADS, 3, SIZE)],
    ),
    "attention with padding": (
        lambda qkv: tokens(attention_reference(qkv, LENGTHS, probability=0.0, keys=None, site_key=0)),
        lambda qkv: tokens(attended(qkv, LENGTHS)),
        [(S, B, HEADS, 3, SIZE)],
    ),
    "attention with dropout": (
        lambda qkv: attention_reference(qkv, None, probability=PROBABILITY, keys=ATTENTION_KEYS, site_key=SITE),
        lambda qkv: attended(qkv, None, PROBABILITY),
        [(S, B, HEADS, 3, SIZE)],
    ),
    "attention of two products and softmax": (
        lambda qkv: tokens(
            attention_by_softmax(qkv, LENGTHS, probability=PROBABILITY, keys=ATTENTION_KEYS, site_key=SITE)
        ),
        lambda qkv: tokens(attended(qkv, LENGTHS, PROBABILITY)),
        [(S, B, HEADS, 3, SIZE)],
    ),
}  # fmt: skip


def attended(qkv: Tensor, lengths: Tensor | None, probability: float = 0.0) -> Tensor:
    """Attention by its definition: qkv [s, b, heads, 3, size] -> [s, b, heads * size]."""
    q, k, v = qkv.permute(3, 1, 2, 0, 4)  # [b, heads, s, size]
    scores = q @ k.transpose(2, 3) / SIZE**0.5
    if lengths is not None:
        scores = scores.masked_fill(torch.arange(S) >= lengths[:, None, None, None], -torch.inf)
    probabilities = F.softmax(scores, -1)
    if probability > 0:
        mask = dropout_mask(ATTENTION_KEYS, SITE, S, probability).view(B, HEADS, S, S)
        probabilities = probabilities * mask / (1 - probability)
    return (probabilities @ v).permute(2, 0, 1, 3).reshape(S, B, HEADS * SIZE)


def tokens(x: Tensor) -> Tensor:
    """Without what stands at padding, which is of no use."""
    return torch.cat([x[:length, sample] for sample, length in enumerate(LENGTHS.tolist())])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    ours, definition, shapes = CASES[name]
    inputs = [random(*shape).requires_grad_() for shape in shapes]
    torch.testing.assert_close(ours(*inputs), definition(*inputs), rtol=1e-12, atol=1e-13)
    assert gradcheck(ours, inputs)


def test_cross_entropy() -> None:
    """Its gradient takes the place of the logits, so that finite differences cannot be taken of it: of torch's then."""
    logits, bias = random(ROWS, COLUMNS).requires_grad_(), random(COLUMNS).requires_grad_()
    labels, factor = torch.tensor([0, 5, 2, 2]), random(ROWS)
    losses = F.cross_entropy(logits + bias, labels, reduction="none")
    assert gradcheck(lambda x, b: F.cross_entropy(x + b, labels, reduction="none"), (logits, bias))
    of_logits, of_bias = torch.autograd.grad(losses, [logits, bias], factor)
    place, total_of_bias = logits.detach().clone(), torch.zeros(COLUMNS, dtype=torch.float64)
    largest, total, target = row_statistics(place, bias, labels, start=0, valid=COLUMNS)
    torch.testing.assert_close(total.log() + largest - target, losses, rtol=1e-12, atol=1e-13)
    logits_to_gradients(place, bias, labels, largest, total, factor, total_of_bias, start=0, valid=COLUMNS)
    torch.testing.assert_close(place, of_logits, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(total_of_bias, of_bias, rtol=1e-12, atol=1e-13)
