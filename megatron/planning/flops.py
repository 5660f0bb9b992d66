"""Model FLOPs: floating-point operations of the products of a forward and a backward; a multiplication and its addition
are two.

What the mathematics needs, whatever a program does (Chowdhery et al., arXiv 2204.02311): of an input its tokens without
padding, of the masked-language-model head the masked positions, nothing twice for recomputation. A backward is twice
its forward. Softmax, LayerNorm, activations and embeddings are left out.
"""

from __future__ import annotations

from megatron.config import ModelConfig


def pretraining_flops(
    model: ModelConfig, *, tokens: float, squared_lengths: float, masked: float, samples: float
) -> float:
    """Of samples with so many tokens, squares of their lengths and masked positions, each a sum over the samples."""
    flops = encoder_flops(model, tokens=tokens, squared_lengths=squared_lengths) + masked_head_flops(model, masked)
    return flops if model.bert_no_binary_head else flops + pooled_head_flops(model, samples, 2)


def encoder_flops(model: ModelConfig, *, tokens: float, squared_lengths: float, frozen_layers: int = 0) -> float:
    """72 h^2 a token and layer with FFN 4 h, and 12 h a pair of tokens in attention. Frozen layers have no backward."""
    h, f = model.hidden_size, model.ffn_hidden_size
    layer = tokens * (24.0 * h * h + 12.0 * h * f) + squared_lengths * 12.0 * h
    return layer * (model.num_layers - frozen_layers * 2.0 / 3.0)


def masked_head_flops(model: ModelConfig, positions: float) -> float:
    """Of the masked-language-model head, transform and tied word table, at so many positions."""
    return 6.0 * positions * model.hidden_size * (model.hidden_size + model.vocab_size)


def pooled_head_flops(model: ModelConfig, inputs: float, outputs: int) -> float:
    """Of the pooler and a linear layer on it, of so many inputs."""
    return 6.0 * inputs * model.hidden_size * (model.hidden_size + outputs)


def token_head_flops(model: ModelConfig, tokens: float, outputs: int) -> float:
    """Of a linear layer on every token."""
    return 6.0 * tokens * model.hidden_size * outputs
