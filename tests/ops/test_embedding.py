import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ops.embedding import embedding_sum
from tests.ops.compare import DTYPES, THREADS, Function, check, new_memory_is_nan

# (shape of the ids, width, rows of the tables)
SHAPES: list[tuple[tuple[int, ...], int, list[int]]] = [
    ((1,), 1, [1]),
    ((37,), 1, [5, 3]),
    ((1,), 33, [7, 2, 4]),
    ((9, 4), 312, [50, 2, 9, 3]),
    ((64,), 1000, [11]),
    ((0, 3), 33, [5, 2]),
]


def fused(ids: list[Tensor]) -> Function:
    return lambda *tables: (embedding_sum(ids, tables),)


def composition(ids: list[Tensor]) -> Function:
    """Of torch's lookups; an id below zero gives zeros."""

    def function(*tables: Tensor) -> tuple[Tensor]:
        rows = [
            F.embedding(one.clamp_min(0), table).masked_fill((one < 0)[..., None], 0.0)
            for one, table in zip(ids, tables, strict=True)
        ]
        total = rows[0]
        for more in rows[1:]:
            total = total + more
        return (total,)

    return function


def example(
    shape: tuple[int, ...], width: int, sizes: list[int], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Ids, some of which occur often and some of which are below zero, and tables."""
    torch.manual_seed(width)
    ids = [torch.randint(-1, size, shape) for size in sizes]
    return ids, [torch.randn(size, width).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "width", "sizes"), SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, ...], width: int, sizes: list[int], dtype: torch.dtype
) -> None:
    ids, tables = example(shape, width, sizes, dtype)
    check(fused(ids), composition(ids), tables, [torch.randn(*shape, width).to(dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_added_to_fp32_memory(dtype: torch.dtype) -> None:
    """In two backwards, of a table that is looked up twice, with the same bits for each number of threads."""
    (first, second, third), (table, _, other) = example((20, 10), 33, [7, 7, 2], dtype)
    gradients = [torch.randn(20, 10, 33).to(dtype) for _ in range(2)]
    exact = [torch.ones(7, 33).double(), torch.ones(2, 33).double()]
    for gradient in gradients:
        for ids, into in ((first, exact[0]), (second, exact[0]), (third, exact[1])):
            there = ids >= 0
            into.index_add_(0, ids[there], gradient[there].double())
    found = []
    for threads in THREADS:
        parameters = [torch.nn.Parameter(table.clone()), torch.nn.Parameter(other.clone())]
        for parameter in parameters:
            parameter.main_grad = torch.ones_like(parameter, dtype=torch.float32)
        with new_memory_is_nan(threads):
            for gradient in gradients:
                embedding_sum([first, second, third], [parameters[0], *parameters]).backward(gradient)
        assert all(parameter.grad is None for parameter in parameters)
        found.append([parameter.main_grad for parameter in parameters])
    for one in found:
        for result, truth, alike in zip(one, exact, found[0], strict=True):
            torch.testing.assert_close(result.double(), truth, rtol=1e-6, atol=1e-5)
            assert torch.equal(result, alike)


def test_an_id_beyond_a_table_is_refused() -> None:
    tables = [torch.randn(5, 4), torch.randn(3, 4)]
    ids = torch.tensor([0, 2])
    embedding_sum([ids, ids], tables)
    with pytest.raises(IndexError, match="id 3 in a table of 3 rows"):
        embedding_sum([ids, ids + 1], tables)


def test_values_that_are_not_finite_stay_so() -> None:
    table = torch.randn(4, 33)
    table[1, 5], table[2, 6] = torch.nan, torch.inf
    ids = torch.tensor([0, 1, 2, 3, -1])
    found = embedding_sum([ids, ids], [table, torch.randn(4, 33)])
    assert torch.equal(~found.isfinite(), torch.cat([~table.isfinite(), torch.zeros(1, 33, dtype=torch.bool)]))


def test_strides_do_not_matter() -> None:
    table = torch.randn(6, 33, requires_grad=True)
    ids = torch.randint(6, (4, 5))
    places = torch.arange(5)[:, None].expand(5, 4)
    found = embedding_sum([ids.t(), places], [table, table])
    found.sum().backward()
    counts = torch.bincount(torch.cat([ids.reshape(-1), places.reshape(-1)]), minlength=6)
    assert torch.equal(found, table[ids.t()] + table[places])
    assert table.grad is not None and torch.equal(table.grad, counts[:, None].expand(6, 33).float())
