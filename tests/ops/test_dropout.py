import dataclasses

import pytest
import torch

from megatron.mpu.context import ParallelContext
from megatron.mpu.group import Group
from megatron.mpu.layout import Layout
from megatron.mpu.random import dropout_keys, site_key
from megatron.ops.dropout import dropout, dropout_mask
from tests.ops.places import in_all_places

pytestmark = in_all_places

SINGLE = ParallelContext.single()


def keys_of(rows: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (rows,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 33), (64, 256), (5, 1000)])
def test_kernel_equals_reference(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, keys, site = torch.randn(rows, columns).to(dtype), keys_of(rows), site_key(3, 1)
    expected = torch.where(dropout_mask(keys, site, columns, 0.3), x.float() / 0.7, 0.0).to(dtype)
    torch.testing.assert_close(
        dropout(x, 0.3, keys, site), expected, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=0
    )


def test_gradient_has_the_mask_of_the_forward() -> None:
    x, keys = torch.randn(16, 64, requires_grad=True), keys_of(16)
    y = dropout(x, 0.5, keys, 7)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y != 0, gradient * 2.0, 0.0))


def test_share_of_zeros_and_mean() -> None:
    x = torch.ones(512, 1024)
    y = dropout(x, 0.1, keys_of(512), 1)
    assert abs((y == 0).float().mean().item() - 0.1) < 0.002  # 5 standard deviations
    assert abs(y.mean().item() - 1.0) < 0.003


def test_no_keys_or_no_probability_is_identity() -> None:
    x = torch.randn(4, 4)
    assert dropout(x, 0.1, None, 1) is x
    assert dropout(x, 0.0, keys_of(4), 1) is x


def test_rows_sites_samples_and_seeds_are_independent() -> None:
    samples = torch.tensor([5, 6])
    keys = dropout_keys(1, samples, sequence=8, heads=2, context=SINGLE)
    every = torch.cat([keys.hidden, keys.attention])
    assert every.unique().numel() == every.numel()
    other = dropout_keys(2, samples, sequence=8, heads=2, context=SINGLE)
    assert not torch.isin(other.hidden, every).any()
    masks = [dropout_mask(keys.hidden, site_key(layer, site), 4096, 0.5) for layer in range(2) for site in range(2)]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert abs((a == b).float().mean().item() - 0.5) < 0.02


def test_keys_of_a_head_do_not_depend_on_who_holds_it() -> None:
    samples = torch.tensor([3, 9])
    whole = dropout_keys(1, samples, sequence=4, heads=4, context=SINGLE).attention.view(2, 4, 4)
    second_of_two = ParallelContext(layout=Layout(tensor=2), rank=1, tensor=Group(name="tensor", rank=1, size=2))
    part = dropout_keys(1, samples, sequence=4, heads=4, context=second_of_two)
    assert torch.equal(whole[:, 2:], part.attention.view(2, 2, 4))
    along = dataclasses.replace(second_of_two, sequence_parallel=True)
    rows = dropout_keys(1, samples, sequence=4, heads=4, context=along)
    assert torch.equal(rows.hidden, part.hidden[4:]) and torch.equal(rows.first, part.hidden[:2])


def test_keys_of_a_sample_do_not_depend_on_its_micro_batch() -> None:
    together = dropout_keys(1, torch.tensor([3, 9]), sequence=4, heads=2, context=SINGLE)
    alone = dropout_keys(1, torch.tensor([9]), sequence=4, heads=2, context=SINGLE)
    assert torch.equal(together.hidden.view(4, 2)[:, 1], alone.hidden)
    assert torch.equal(together.attention.view(2, 2, 4)[1], alone.attention.view(2, 4))
