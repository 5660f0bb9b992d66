import pytest
import torch
import torch.nn.functional as F

from megatron.mpu.context import ParallelContext
from megatron.mpu.cross_entropy import vocab_parallel_cross_entropy
from megatron.mpu.layout import Layout
from megatron.mpu.sharding import Initial, new_parameter
from tests.ranks import run_ranks

ROWS, VOCABULARY = 13, 11


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, bias = 5.0 * torch.randn(ROWS, VOCABULARY, generator=generator), torch.randn(11, generator=generator)
    return logits, bias, torch.randint(VOCABULARY, (ROWS,), generator=generator), torch.rand(ROWS, generator=generator)


def divided(context: ParallelContext) -> tuple[torch.Tensor, ...]:
    logits, bias, labels, weights = inputs()
    size = context.tensor.size
    parameter = new_parameter((VOCABULARY,), Initial(), dim=0, rank=context.tensor.rank, size=size)
    block = len(parameter)
    padding = (0, block * size - VOCABULARY)
    start = context.tensor.rank * block
    parameter.data = F.pad(bias, padding, value=float("nan"))[start : start + block].clone()
    mine = F.pad(logits, padding, value=float("nan"))[:, start : start + block].clone().requires_grad_()
    losses, hits = vocab_parallel_cross_entropy(mine * 1.0, parameter, labels, context.tensor)
    (losses * weights).sum().backward()
    assert mine.grad is not None and parameter.grad is not None
    return losses.detach(), hits, mine.grad, parameter.grad


@pytest.mark.parametrize("size", [1, 2, 3])
def test_equals_torch(size: int) -> None:
    """Padding columns hold no numbers: they must not be looked at, and their gradient is zero."""
    logits, bias, labels, weights = inputs()
    logits.requires_grad_()
    bias.requires_grad_()
    expected = F.cross_entropy(logits + bias, labels, reduction="none")
    (expected * weights).sum().backward()
    results = run_ranks(Layout(tensor=size), divided)
    for losses, hits, *_ in results:
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(hits, (logits + bias).argmax(1) == labels)
    for part, whole in ((2, logits), (3, bias)):
        gradient = torch.cat([result[part] for result in results], -1)
        torch.testing.assert_close(gradient[..., :VOCABULARY], whole.grad, rtol=1e-5, atol=1e-6)
        assert not gradient[..., VOCABULARY:].any()


def test_bf16_logits_give_a_bf16_gradient_and_fp32_losses() -> None:
    logits, _, labels, _ = inputs()
    low, bias = logits.bfloat16().requires_grad_(), new_parameter((VOCABULARY,), Initial())
    bias.data = torch.zeros(VOCABULARY, dtype=torch.bfloat16)
    losses, _ = vocab_parallel_cross_entropy(low * 1.0, bias, labels, ParallelContext.single().tensor)
    losses.sum().backward()
    assert low.grad is not None and losses.dtype == torch.float32 and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses, F.cross_entropy(low.float(), labels, reduction="none"))


def test_a_second_backward_is_refused() -> None:
    """The gradient took the place of the logits."""
    logits, _, labels, _ = inputs()
    bias = new_parameter((VOCABULARY,), Initial())
    bias.data.zero_()
    losses, _ = vocab_parallel_cross_entropy(
        logits.requires_grad_() * 1.0, bias, labels, ParallelContext.single().tensor
    )
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
