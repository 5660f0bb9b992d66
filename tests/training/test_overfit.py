"""The check every BERT code should pass: it can learn a handful of samples by heart."""

import dataclasses
from pathlib import Path

import pytest

from megatron.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import open_splits
from megatron.data.tokenizer import load_tokenizer
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from megatron.training.model import build
from megatron.training.step import train_step

SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=128,
    num_attention_heads=4,
    ffn_hidden_size=256,
    max_position_embeddings=64,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)


@pytest.mark.parametrize("architecture", ["megatron-bert", "bert"])
def test_sixty_four_samples_are_learnt_by_heart(corpus: Path, architecture: str) -> None:
    tokenizer = load_tokenizer("BertWordPieceLowerCase", str(corpus / "vocab.txt"))
    data = DataConfig(data_path=(str(corpus / "corpus_text_sentence"),), split="100,0,0", seq_length=32)
    splits = open_splits(data, seed=1, tokenizer=tokenizer)
    batch = splits["train"].assemble(0, 64)
    config = dataclasses.replace(SHAPE, architecture=architecture, vocab_size=tokenizer.vocab_size)
    context = ParallelContext.single()
    model = build(config, ParallelConfig(), PrecisionConfig(), 1, context)
    optimizer = Optimizer(model.chunks, OptimizerConfig(lr=1e-3, weight_decay=0.0), PrecisionConfig(), context)
    for step in range(400):
        rate = 1e-3 * min(1.0, (step + 1) / 20)
        totals = train_step(model, optimizer, [batch], rate, seed=1).totals
        if totals.mlm_hits == totals.masked and totals.sop_hits == totals.samples:
            break
    assert totals.mlm_hits / totals.masked == 1.0
    assert totals.sop_hits / totals.samples == 1.0
