import pytest
import torch
import torch.nn.functional as F

from megatron.mpu.context import ParallelContext
from megatron.mpu.cross_entropy import vocab_parallel_cross_entropy
from megatron.mpu.layout import Layout
from tests.ranks import run_ranks

ROWS, VOCABULARY = 13, 11


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5.0 * torch.randn(ROWS, VOCABULARY, generator=generator)
    return logits, torch.randint(VOCABULARY, (ROWS,), generator=generator), torch.rand(ROWS, generator=generator)


def divided(context: ParallelContext) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, labels, weights = inputs()
    block = -(-VOCABULARY // context.tensor.size)
    start = context.tensor.rank * block
    padded = F.pad(logits, (0, block * context.tensor.size - VOCABULARY), value=float("-inf"))
    mine = padded[:, start : start + block].clone().requires_grad_()
    losses, hits = vocab_parallel_cross_entropy(mine, labels, start, context.tensor)
    (losses * weights).sum().backward()
    return losses.detach(), hits, mine.grad


@pytest.mark.parametrize("size", [1, 2, 3])
def test_equals_torch(size: int) -> None:
    logits, labels, weights = inputs()
    logits.requires_grad_()
    expected = F.cross_entropy(logits, labels, reduction="none")
    (expected * weights).sum().backward()
    results = run_ranks(Layout(tensor=size), divided)
    for losses, hits, _ in results:
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(hits, logits.argmax(1) == labels)
    gradient = torch.cat([g for *_, g in results], 1)[:, :VOCABULARY]
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-6)


def test_bf16_logits_give_a_bf16_gradient_and_fp32_losses() -> None:
    logits, labels, _ = inputs()
    low = logits.bfloat16().requires_grad_()
    losses, _ = vocab_parallel_cross_entropy(low, labels, 0, ParallelContext.single().tensor)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses, F.cross_entropy(low.float(), labels, reduction="none"))
