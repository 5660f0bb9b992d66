"""Adversarial training: the fast gradient method (Miyato et al., arXiv 1605.07725) on the word embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer

WORDS = "embeddings.word_embeddings.weight"


@contextmanager
def adversarial_words(optimizer: Optimizer, epsilon: float, context: ParallelContext) -> Iterator[None]:
    """The word embeddings moved by `epsilon` along their gradient, of norm 1, of the pass just done; then restored.

    The norm is that of the gradient of the whole table over the global batch, so it is the same in every layout. The
    gradients of both passes stay. Nothing moves where the gradient is zero or not finite. Collective.
    """
    optimizer.finish_pass()
    own = [piece.tensor for piece in optimizer.gradients(once=True) if piece.name == WORDS]
    squares = torch.zeros((), dtype=torch.float64, device=context.device)
    for part in own:
        squares += torch.linalg.vector_norm(part, dtype=torch.float64) ** 2
    norm = math.sqrt(float(context.world.all_reduce_(squares)))
    words = [piece.tensor for piece in optimizer.weights() if piece.name == WORDS]
    gradients = [piece.tensor for piece in optimizer.gradients() if piece.name == WORDS]
    kept = [word.clone() for word in words]
    if 0 < norm < math.inf:
        for word, gradient in zip(words, gradients, strict=True):
            word.add_(gradient, alpha=epsilon / norm)
    _publish(optimizer)
    yield
    optimizer.finish_pass()  # before the ranks exchange weights, whose order must be the same on all
    for word, value in zip(words, kept, strict=True):
        word.copy_(value)
    _publish(optimizer)


def _publish(optimizer: Optimizer) -> None:
    optimizer.publish()
    optimizer.flat.wait_for_weights()
