"""How far a fused operation is from the truth in fp64, against how far torch's composition in its number format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
DTYPES = [torch.float32, torch.bfloat16]
THREADS = [1, 2, 3]


@contextmanager
def new_memory_is_nan(threads: int) -> Iterator[None]:
    """Tensors that are made without a value hold NaN; operations use `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)  # which fills uninitialised memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def with_gradients(function: Function, inputs: Sequence[Tensor], of_outputs: Sequence[Tensor]) -> list[Tensor]:
    """What a function gives, and the gradients of its inputs: zeros where it has none."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    given = [gradient.to(y.dtype) for y, gradient in zip(outputs, of_outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, given, materialize_grads=True)]


def assert_no_worse(ours: Sequence[Tensor], composed: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Each result's error is no larger than that of the composition, but for what chance does to two roundings."""
    for result, other, truth in zip(ours, composed, exact, strict=True):
        assert result.shape == truth.shape and result.dtype == other.dtype
        chance = 0.5 if truth.numel() > 20 else 2.0  # of few elements
        allowed = 1.5 * (other - truth).norm() + chance * torch.finfo(result.dtype).eps * truth.norm()
        assert (result - truth).norm() <= allowed


def check(fused: Function, composition: Function, inputs: Sequence[Tensor], of_outputs: Sequence[Tensor]) -> None:
    """`assert_no_worse` of values and gradients with poisoned memory, for several numbers of threads."""
    exact = with_gradients(composition, [x.double() for x in inputs], of_outputs)
    composed = with_gradients(composition, inputs, of_outputs)
    for threads in THREADS:
        with new_memory_is_nan(threads):
            assert torch.empty(3).isnan().all()
            ours = with_gradients(fused, inputs, of_outputs)
        assert_no_worse(ours, composed, exact)
