"""The operators as torch sees them: schemas that say what is changed, and shapes without computing."""

import pytest
import torch
from torch import Tensor, library

from megatron.ops import (
    add_norm,
    attention,
    bias_activation,
    cross_entropy,
    cuda,
    dropout,
    embedding,
    main_grad,
    operators,
    softmax,
)
from megatron.ops.operators import LIBRARY
from tests.ops.compare import DTYPES

# Those that define operators.
MODULES = [add_norm, attention, bias_activation, cross_entropy, dropout, embedding, main_grad, softmax]
ROWS, COLUMNS, SITE = 7, 10, -5


def arguments(dtype: torch.dtype) -> dict[str, list[tuple[object, ...]]]:
    """Calls of each operator."""

    def rows() -> Tensor:
        return torch.randn(ROWS, COLUMNS).to(dtype)

    def columns() -> Tensor:
        return torch.randn(COLUMNS).to(dtype)

    def sums() -> Tensor:
        return torch.randn(COLUMNS)

    def numbers() -> Tensor:
        return torch.rand(ROWS)

    keys, labels, ids = torch.arange(ROWS), torch.arange(ROWS) + 2, torch.tensor([[0, 3, -1], [1, 1, 0]])
    qkv, lengths, head_keys = torch.randn(5, 2, 3, 3, 4).to(dtype), torch.tensor([5, 3]), torch.arange(2 * 3 * 5)
    scores, row_keys = torch.randn(2, 3, 5).to(dtype), torch.arange(6)
    tables, memory = [torch.randn(4, COLUMNS).to(dtype) for _ in range(2)], [torch.zeros(4, COLUMNS) for _ in range(2)]
    return {
        "dropout": [(rows(), 0.5, keys, SITE)],
        "bias_activation": [(rows(), columns(), 0)],
        "bias_activation_gradients": [(rows(), rows(), columns(), sums(), 1)],
        "embedding": [(ids, tables)],
        "embedding_gradients": [(torch.randn(3, COLUMNS).to(dtype), ids, memory)],
        "add_norm": [
            (rows(), columns(), rows(), columns(), columns(), 1e-5, keys, SITE, 0.5),
            (rows(), columns(), rows(), None, None, 0.0, None, SITE, 0.0),
            (None, None, rows(), columns(), columns(), 1e-5, None, SITE, 0.0),
        ],
        "add_norm_gradients": [
            (rows(), rows(), rows(), columns(), numbers(), numbers(), True, sums(), sums(), sums(), keys, SITE, 0.5),
            (rows(), None, None, None, None, None, True, sums(), None, None, None, SITE, 0.0),
            (None, rows(), rows(), columns(), numbers(), numbers(), False, None, sums(), sums(), None, SITE, 0.0),
        ],
        "cross_entropy": [(rows(), columns(), labels, 2, 7)],
        "cross_entropy_gradients_": [
            (rows(), columns(), labels, numbers(), numbers(), numbers(), sums(), 2, 7)
        ],
        "softmax": [(scores, lengths, 0.5, row_keys, SITE, 0.5), (scores, None, 0.5, None, SITE, 0.0)],
        "softmax_gradients": [(scores, scores, 0.5, row_keys, SITE, 0.5), (scores, scores, 0.5, None, SITE, 0.0)],
        "add_product_": [(torch.zeros(4, COLUMNS), torch.randn(ROWS, 4).to(dtype), rows())],
        "add_rows_": [(sums(), rows()), (sums(), rows()[:1])],
        "attention": [(qkv, lengths, head_keys, SITE, 0.5), (qkv, None, None, SITE, 0.0)],
        "attention_gradients": [(torch.randn(5, 2, 12).to(dtype), qkv, lengths, head_keys, SITE, 0.5)],
    }


def test_every_operator_is_here() -> None:
    assert {name.split("::")[1] for name in LIBRARY._op_defs} == set(arguments(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", arguments(torch.float32))
def test_a_kernel_is_not_called_with_a_tensor_of_another_size_or_format(name: str, dtype: torch.dtype) -> None:
    """Each tensor of a call in turn; kernels get addresses, so they would read what lies behind it."""
    operator = getattr(torch.ops.megatron, name)
    for call in arguments(dtype)[name]:
        for place, argument in enumerate(call):
            if isinstance(argument, Tensor):
                shorter, other = argument.flatten()[:-1].clone(), argument.to(torch.float16)
                wrong = [shorter.view(1, -1) if name == "add_rows_" and place == 1 else shorter, other]
                for bad in wrong:
                    with pytest.raises((ValueError, IndexError, KeyError)):
                        operator(*call[:place], bad, *call[place + 1 :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", arguments(torch.float32))
def test_schema_and_shapes(name: str, dtype: torch.dtype) -> None:
    for call in arguments(dtype)[name]:
        operator = getattr(torch.ops.megatron, name).default
        library.opcheck(operator, call, test_utils=("test_schema", "test_faketensor"))


def test_tensors_of_several_devices_are_refused() -> None:
    guarded = operators._on_its_gpu("add", lambda a, b: a + b)
    with pytest.raises(ValueError, match="add: tensors on cpu, meta; expected one device"):
        guarded(torch.ones(3), torch.ones(3, device="meta"))


def test_the_compiler_looks_for_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the kernels are there is a constant to torch.compile: no break of the graph."""

    def kernels() -> cuda.Kernels:
        return cuda.Kernels(loaded=cuda.LIBRARY.with_name("nothing").exists(), why="not there")

    monkeypatch.setattr(cuda, "kernels", kernels)
    dispatched = torch.compile(
        lambda x: x + len(operators.why_not_compiled("cuda", x.dtype)), backend="eager", fullgraph=True
    )
    assert dispatched(torch.zeros(1)).item() == len("not there")
