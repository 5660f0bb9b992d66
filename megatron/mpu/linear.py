"""The matrix product of divided linear layers: communication beside the weight gradient, which can also be put off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from megatron.mpu.group import Group
from megatron.ops.main_grad import add_product, add_sum, put_gradient
from megatron.ops.product import product

ALONE = Group(name="none")
Parameters: TypeAlias = tuple[nn.Parameter, nn.Parameter | None]


@dataclass
class WeightQueue:
    """Weight gradients put off while `open`: those of a zero-bubble schedule (Qi et al., arXiv 2401.10241)."""

    open: bool = False
    products: list[Callable[[], None]] = field(default_factory=list)

    def put(self, product: Callable[[], None]) -> None:
        """Compute and add a gradient: later, or at once if the queue is closed."""
        if self.open:
            self.products.append(product)
        else:
            product()

    def take(self) -> list[Callable[[], None]]:
        """The gradients put off so far, as calls that compute and add them."""
        products, self.products = self.products, []
        return products


class _Linear(torch.autograd.Function):
    """Weights' gradients are added to their memory as they are computed.

    With a queue, autograd sees no weight (`weight` and `bias` are None).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        held: Parameters,
        group: Group,
        along: bool,
        queue: WeightQueue | None,
    ) -> Tensor:
        ctx.save_for_backward(x)
        # Not among the saved tensors: recomputation would give back copies that are no parameters.
        ctx.arguments = (held, group, along, queue)
        return product(group.all_gather(x, 0) if along else x, *held)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        held, group, along, queue = ctx.arguments
        whole = x
        if along:  # gathered once more rather than kept
            whole = x.new_empty((x.shape[0] * group.size, *x.shape[1:]))
            gathering = group.start_all_gather(whole, x.contiguous())
        of_input = product(gradient, held[0].detach().t())
        if along:
            gathering.wait()
            of_rows = torch.empty_like(x, memory_format=torch.contiguous_format)
            reducing = group.start_reduce_scatter(of_rows, of_input)
        else:
            of_rows = of_input
            reducing = group.start_all_reduce_(of_input)
        rows, columns = gradient.reshape(-1, gradient.shape[-1]), whole.reshape(-1, whole.shape[-1])
        of_weight = of_bias = None
        if queue is not None:
            queue.put(lambda: _put_products(held, rows, columns))
        else:
            of_weight = add_product(held[0], rows, columns)
            of_bias = None if held[1] is None else add_sum(held[1], rows)
        reducing.wait()
        return of_rows, of_weight, of_bias, None, None, None, None


@torch.no_grad()
def _put_products(held: Parameters, rows: Tensor, columns: Tensor) -> None:
    weight, bias = held
    put_gradient(weight, add_product(weight, rows, columns))
    if bias is not None:
        put_gradient(bias, add_sum(bias, rows))


def linear(
    x: Tensor,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    *,
    group: Group = ALONE,
    sequence_parallel: bool = False,
    queue: WeightQueue | None = None,
) -> Tensor:
    """x [..., inputs] times weight [outputs, inputs], plus bias.

    group: where each member holds other rows of the weight: the gradient of x is summed over it, beside the product for
    the weight's gradient. sequence_parallel: x is this member's [s / tp, ...] rows; they are gathered, and the gradient
    is scattered back.
    """
    along, held = sequence_parallel and group.size > 1, (weight, bias)
    if not torch.is_grad_enabled() and not along:
        return product(x, weight, bias)
    if queue is None:
        return _Linear.apply(x, weight, bias, held, group, along, None)
    return _Linear.apply(x, None, None, held, group, along, queue)
