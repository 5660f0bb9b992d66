"""What no training step goes below on a machine: the time of its matrix products alone, into memory that is there."""

from __future__ import annotations

import statistics
import time

import torch
from variants import Shape


def ceiling_seconds(shape: Shape, masked: int, dtype: torch.dtype, repetitions: int = 5) -> dict[str, float]:
    """Seconds of the products of a step, forward and backward: of linear layers, attention and the head.

    masked: tokens to predict; the head is computed at these alone.
    """
    h, tokens, size = shape.hidden, shape.tokens, shape.hidden // shape.heads
    linear = [(tokens, inputs, outputs) for inputs, outputs in ((h, 3 * h), (h, h), (h, 4 * h), (4 * h, h))]
    head = [(masked, h, h), (masked, h, shape.vocabulary)]
    scores, values = (shape.sequence, size, shape.sequence), (shape.sequence, shape.sequence, size)
    pairs = shape.samples * shape.heads
    return {
        "linear layers": shape.layers * sum(_three_products(*sizes, dtype, repetitions) for sizes in linear),
        # Scores, values, and two products of each kind for their gradients.
        "attention": 3 * shape.layers * sum(_product(*m, dtype, repetitions, pairs) for m in (scores, values)),
        "head": sum(_three_products(*sizes, dtype, repetitions) for sizes in head),
    }


def _three_products(rows: int, inputs: int, outputs: int, dtype: torch.dtype, repetitions: int) -> float:
    """A linear layer's output, and the gradients of its input and of its weight."""
    sizes = ((rows, inputs, outputs), (rows, outputs, inputs), (inputs, rows, outputs))
    return sum(_product(*each, dtype, repetitions) for each in sizes)


def _product(m: int, k: int, n: int, dtype: torch.dtype, repetitions: int, batch: int = 1) -> float:
    """Median seconds of `batch` products [m, k] x [k, n] in one call."""
    left, right = torch.randn(batch, m, k).to(dtype), torch.randn(batch, k, n).to(dtype)
    out = torch.empty(batch, m, n, dtype=dtype)
    if batch == 1:
        left, right, out = left[0], right[0], out[0]
    product = torch.mm if batch == 1 else torch.bmm
    seconds = []
    for _ in range(repetitions + 2):
        started = time.perf_counter()
        product(left, right, out=out)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])
