import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ops.cross_entropy import logits_to_gradients, row_statistics
from tests.ops.compare import DTYPES, THREADS, assert_no_worse, new_memory_is_nan
from tests.ops.places import in_all_places

pytestmark = in_all_places
# rows, columns in memory, of which the vocabulary has, first column's place in it
SHAPES = [
    (1, 1, 1, 0), (5, 33, 33, 0), (7, 40, 37, 100), (3, 1000, 1000, 0), (300, 24, 24, 8), (2, 5120, 5120, 0),
    (2, 5003, 4999, 5),
]  # fmt: skip


def results(
    logits: Tensor, bias: Tensor, labels: Tensor, factor: Tensor, start: int, valid: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What both halves give for a vocabulary that is only here: losses, and the gradients of logits and bias."""
    logits, of_bias = logits.clone(), torch.zeros(len(bias))
    largest, total, target = row_statistics(logits, bias, labels, start=start, valid=valid)
    losses = total.log() + (largest - target)
    logits_to_gradients(logits, bias, labels, largest, total, factor, of_bias, start=start, valid=valid)
    return [losses, of_bias], [logits]


def composition(
    logits: Tensor, bias: Tensor, labels: Tensor, factor: Tensor, start: int, valid: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The same by torch's cross-entropy in the inputs' format, without the columns of padding."""
    leaves = [logits.clone().requires_grad_(), bias.clone().requires_grad_()]
    losses = F.cross_entropy((leaves[0] + leaves[1])[:, :valid], labels - start, reduction="none")
    of_logits, of_bias = torch.autograd.grad(losses, leaves, factor.to(losses.dtype))
    return [losses.detach(), of_bias], [of_logits]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_larger_than_that_of_the_composition(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    rows, columns, valid, start = shape
    torch.manual_seed(rows * columns)
    logits, bias = (3 * torch.randn(rows, columns)).to(dtype), torch.randn(columns).to(dtype)
    labels, factor = torch.randint(start, start + valid, (rows,)), torch.rand(rows) / rows
    exact = composition(logits.double(), bias.double(), labels, factor, start, valid)
    composed = composition(logits, bias, labels, factor, start, valid)
    for threads in THREADS:
        with new_memory_is_nan(threads):
            ours = results(logits, bias, labels, factor, start, valid)
        assert (ours[1][0][:, valid:] == 0).all()
        assert_no_worse(ours[0], [x.float() for x in composed[0]], exact[0])  # losses and sums are in fp32
        assert_no_worse(ours[1], composed[1], exact[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_logit_may_come_first_or_last(dtype: torch.dtype) -> None:
    rising = torch.linspace(-80, 80, 6_000).to(dtype)
    logits = torch.stack([rising, rising.flip(0), torch.full_like(rising, -300), 4 * rising])
    bias, labels = torch.zeros(6_000, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    largest, total, _ = row_statistics(logits, bias, labels, start=0, valid=6_000)
    assert torch.equal(largest, logits.float().amax(1))
    exact = (logits.double() - logits.double().amax(1, keepdim=True)).exp().sum(1)
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_label_of_another_rank_counts_for_nothing_here(dtype: torch.dtype) -> None:
    """Columns 8 to 23 of the vocabulary: only the third label is among them."""
    logits, bias, labels = torch.randn(4, 16).to(dtype), torch.zeros(16, dtype=dtype), torch.tensor([3, 7, 20, 99])
    largest, total, target = row_statistics(logits, bias, labels, start=8, valid=16)
    assert target.tolist() == [0.0, 0.0, logits[2, 12].item(), 0.0]
    of_bias = torch.zeros(16)
    logits_to_gradients(logits, bias, labels, largest, total, torch.ones(4), of_bias, start=8, valid=16)
    sums = logits.float().sum(1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 0.0, 1.0]), atol=2e-2, rtol=0.0)
