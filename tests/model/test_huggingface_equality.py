"""Loss, every gradient and a whole training run equal those of the Hugging Face classes with the same weights."""

import pytest
import torch

from megatron.config import ModelConfig, OptimizerConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from tests.model.hub import BERT, MEGATRON, SHAPES, batch_of, make_pair, our_loss, their_loss


@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_every_gradient(name: str) -> None:
    config = SHAPES[name]
    pair, batch = make_pair(config), batch_of(0, config)
    ours, theirs = our_loss(pair.ours, batch), their_loss(pair.theirs, batch)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    their_gradients = {n: p.grad for n, p in pair.theirs.named_parameters()}
    for n, parameter in pair.ours.named_parameters():
        expected = pair.merged(n, their_gradients)
        error = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-3)
        assert error < 1e-5, f"{n}: {error}"


@pytest.mark.parametrize("config", [BERT, MEGATRON], ids=["bert", "megatron-bert"])
def test_fifty_steps_track_a_plain_loop(config: ModelConfig) -> None:
    pair, single = make_pair(config), ParallelContext.single()
    optimizer = Optimizer([pair.ours], OptimizerConfig(lr=2e-3, weight_decay=0.01), PrecisionConfig(), single)
    no_decay = [p for p in pair.theirs.parameters() if p.dim() < 2]
    decay = [p for p in pair.theirs.parameters() if p.dim() >= 2]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=2e-3, eps=1e-8)
    for step in range(50):
        batch = batch_of(step % 7, config)
        optimizer.begin_step(1)
        ours = our_loss(pair.ours, batch)
        ours.backward()
        optimizer.step(2e-3)
        theirs = their_loss(pair.theirs, batch)
        theirs.backward()
        torch.nn.utils.clip_grad_norm_(pair.theirs.parameters(), 1.0)
        reference.step()
        reference.zero_grad()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4), step
    assert ours.item() < 0.7 * their_loss(make_pair(config).theirs, batch).item()


def test_without_the_binary_head_there_is_no_pooler_and_no_sop() -> None:
    import dataclasses

    config = dataclasses.replace(BERT, bert_no_binary_head=True)
    from megatron.model import BertForPreTraining

    model = BertForPreTraining(config, ParallelContext.single())
    assert not [n for n, _ in model.named_parameters() if n.startswith(("pooler", "binary_head"))]


@pytest.mark.parametrize("name", ["bert", "megatron-bert"])
def test_what_stands_in_the_padding_changes_nothing(name: str) -> None:
    config = SHAPES[name]
    model, batch = make_pair(config).ours, batch_of(3, config)
    before = our_loss(model, batch)
    padding = torch.arange(20) >= batch["lengths"][:, None]
    assert padding.any()
    changed = {**batch, "tokens": torch.where(padding, 9, batch["tokens"])}
    assert our_loss(model, changed).item() == pytest.approx(before.item(), rel=1e-6)
