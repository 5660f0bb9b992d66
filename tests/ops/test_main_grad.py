"""Gradients are added where they are computed, and each parameter's owner hears of it once a backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.mpu.context import ParallelContext
from megatron.mpu.cross_entropy import vocab_parallel_cross_entropy
from megatron.mpu.grads import FlatParameters
from megatron.mpu.layers import LayerNorm, Linear, VocabParallelBias
from megatron.mpu.linear import WeightQueue, linear
from megatron.mpu.sharding import Initial, initialize, new_parameter
from megatron.ops.add_norm import Kept, add, add_norm
from megatron.ops.bias_activation import bias_activation
from megatron.ops.embedding import embedding_sum
from megatron.ops.main_grad import add_product, add_sum, gradient_memory
from tests.ops.compare import DTYPES
from tests.ops.places import in_all_places

pytestmark = in_all_places

SINGLE = ParallelContext.single()
SPREAD = Initial(std=0.5)
MICRO_BATCHES = 16


def parameter_of(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def owned(parameter: nn.Parameter) -> Tensor:
    """fp32 memory for the parameter's gradient, which is not empty."""
    parameter.main_grad = torch.ones_like(parameter, dtype=torch.float32)
    return parameter.main_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_the_owners_or_new(dtype: torch.dtype) -> None:
    parameter = parameter_of((3, 5), dtype)
    fresh, given = gradient_memory(parameter)
    assert given is fresh and fresh.dtype == torch.float32 and torch.equal(fresh, torch.zeros(3, 5))
    memory = owned(parameter)
    into, nothing = gradient_memory(parameter)
    assert into is memory and nothing is None


Add = Callable[[nn.Parameter, Tensor, Tensor], Tensor | None]
ADDS: dict[str, tuple[tuple[int, ...], Add]] = {
    "product": ((33, 20), add_product),
    "sum": ((33,), lambda parameter, rows, _: add_sum(parameter, rows)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ADDS)
def test_micro_batches_add_up_in_fp32(name: str, dtype: torch.dtype) -> None:
    """In 16 bits a sum of sixteen has lost two more digits than one product has."""
    torch.manual_seed(1)
    shape, add_gradient = ADDS[name]
    with_memory, without = parameter_of(shape, dtype), parameter_of(shape, dtype)
    memory = owned(with_memory)
    exact, plain = torch.ones(shape, dtype=torch.float64), torch.ones(shape, dtype=dtype)
    for _ in range(MICRO_BATCHES):
        rows, columns = torch.rand(40, 33).to(dtype), torch.rand(40, 20).to(dtype)
        truth = rows.double().t() @ columns.double() if name == "product" else rows.double().sum(0)
        exact += truth
        assert add_gradient(with_memory, rows, columns) is None
        given = add_gradient(without, rows, columns)
        assert given is not None
        torch.testing.assert_close(given.double(), truth, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
        plain += given.to(dtype)
    error, error_of_plain = (memory - exact).norm() / exact.norm(), (plain - exact).norm() / exact.norm()
    assert error <= (2e-7 if dtype == torch.float32 or name == "sum" else torch.finfo(dtype).eps / 4)
    assert dtype == torch.float32 or error < error_of_plain / 4


class Tied(nn.Module):
    """Every way in which a parameter gets its gradient; the table is looked up and is the matrix of the logits."""

    def __init__(self, queue: WeightQueue | None, *, again: bool) -> None:
        super().__init__()
        self.table = new_parameter((11, 8), SPREAD)
        self.positions = new_parameter((3, 8), SPREAD)
        self.dense = Linear(8, 8, std=0.5)
        self.last = Linear(8, 8, std=0.5)
        self.scale = new_parameter((8,), SPREAD)  # by torch's own operations
        self.logits = VocabParallelBias(11, SINGLE)
        self.norm = LayerNorm(8, 1e-5)
        self.queue, self.again = queue, again

    def block(self, x: Tensor) -> Tensor:
        kept = Kept(probability=0.25, keys=torch.arange(len(x)), site_key=3)
        branch = bias_activation(self.dense.product(x), self.dense.bias, "gelu")
        total, normalized = add_norm(branch, self.last.bias, x, kept, self.norm.norm)
        return add(linear(normalized, self.last.weight, None, queue=self.queue), self.last.bias, total, kept)

    def forward(self, ids: Tensor) -> Tensor:
        x = embedding_sum([ids, torch.arange(len(ids)) % 3], [self.table, self.positions]) * self.scale
        x = checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x)
        losses, _ = vocab_parallel_cross_entropy(linear(x, self.table, None), self.logits.bias, ids, SINGLE.tensor)
        return losses.sum()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("put_off", [False, True], ids=["at once", "put off"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gradient_arrives_once_a_backward(dtype: torch.dtype, put_off: bool, again: bool) -> None:
    """And is what autograd adds up by itself in fp64 where nobody owns the gradients."""
    torch.manual_seed(1)
    queue = WeightQueue(open=put_off)
    owner, plain = Tied(queue if put_off else None, again=again), Tied(None, again=False)
    initialize(owner, 1)
    initialize(plain, 1)
    plain = plain.to(dtype).double()
    context = ParallelContext.single(torch.get_default_device().type)
    flat = FlatParameters([owner], dtype, context, bucket_size=1)
    flat.begin_step(3)
    for done in range(1, 4):
        ids = torch.randint(11, (9,))
        owner(ids).backward()
        plain(ids).backward()
        waiting = queue.take()
        assert len(waiting) == put_off
        assert sum(bucket.missing for bucket in flat.buckets) == len(flat.names) * (3 - done) + put_off
        for product in waiting:
            product()
        assert all(bucket.missing == len(bucket.names) * (3 - done) for bucket in flat.buckets)
    flat.finish_reduction()
    for own, other in zip(owner.parameters(), plain.parameters(), strict=True):
        assert own.grad is None and other.grad is not None
        error = (own.main_grad - other.grad).norm() / other.grad.norm()
        assert error < 4 * torch.finfo(dtype).eps
