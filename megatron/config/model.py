"""Shape of the encoder."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from megatron.config.suggest import nearest_divisors
from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the encoder."""

    architecture: Literal["megatron-bert", "bert"] = "megatron-bert"
    """megatron-bert: LayerNorm before each block (MegatronBertForPreTraining); bert: after it (BertForPreTraining)."""
    num_layers: int = 0
    """Transformer layers."""
    hidden_size: int = 0
    """Width of the hidden states."""
    num_attention_heads: int = 0
    """Attention heads; must divide --hidden-size."""
    ffn_hidden_size: int = 0
    """Width inside the MLP [default: 4 x --hidden-size]."""
    max_position_embeddings: int = 0
    """Rows of the position table; at least --seq-length."""
    vocab_size: int = 0
    """Rows of the word table [default: the vocabulary's size]; more rows than tokens are allowed."""
    make_vocab_size_divisible_by: int = 1
    """Round the rows of the word table up to a multiple of this."""
    type_vocab_size: int = 2
    """Token types (segments A and B)."""
    task_type_vocab_size: int = 0
    """ERNIE's task types; 0 for none. Training uses task type 0."""
    activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
    """MLP activation: erf GELU, tanh GELU or ReLU."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm."""
    hidden_dropout: float = 0.1
    """Dropout of embeddings and block outputs."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights."""
    bert_no_binary_head: bool = False
    """Train without sentence-order prediction: no pooler and no binary head."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def problems(self) -> list[str]:
        """Violations of the rules of a shape, as messages."""
        found = [
            f"--{name.replace('_', '-')} is required (or a --preset that gives it)"
            for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
            if getattr(self, name) <= 0
        ]
        heads = self.num_attention_heads
        if heads > 0 and self.hidden_size > 0 and self.hidden_size % heads:
            found.append(
                f"--num-attention-heads {heads} does not divide --hidden-size {self.hidden_size}; "
                f"nearest that do: {nearest_divisors(self.hidden_size, heads)}"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"--{name.replace('_', '-')} must be in [0, 1), not {getattr(self, name)}")
        if self.make_vocab_size_divisible_by < 1:
            found.append("--make-vocab-size-divisible-by must be at least 1")
        if self.layernorm_epsilon <= 0:
            found.append("--layernorm-epsilon must be positive")
        if self.type_vocab_size < 2 and not self.bert_no_binary_head:
            found.append("--type-vocab-size must be at least 2 with the binary head (segments A and B)")
        return found


def with_vocabulary(model: ModelConfig, tokens: int) -> ModelConfig:
    """The model with its word table sized for a vocabulary of `tokens` tokens.

    Raises `UserError` if `--vocab-size` is smaller than the vocabulary.
    """
    if model.vocab_size and model.vocab_size < tokens:
        raise UserError(f"--vocab-size {model.vocab_size} is smaller than the vocabulary of {tokens} tokens")
    multiple = model.make_vocab_size_divisible_by
    rows = math.ceil((model.vocab_size or tokens) / multiple) * multiple
    return dataclasses.replace(model, vocab_size=rows)


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The model section of a saved configuration; fields of other versions are an error.

    Raises `UserError` naming the unknown fields.
    """
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"the checkpoint's config.json has unknown model fields: {', '.join(unknown)}")
    return ModelConfig(**values)
