"""Published model shapes by name, for `--preset`. Any flag overrides a value of a preset.

Shapes as released by CLUE (CLUEPretrainedModels), HFL, IDEA-CCNL (Erlangshen), NVIDIA (Megatron-LM) and Baidu (ERNIE).
"""

from megatron.config import ModelConfig


def _post(layers: int, hidden: int, heads: int, ffn: int, vocab: int, **changes: object) -> ModelConfig:
    """A shape of the original BERT: LayerNorm after each block, epsilon 1e-12, 512 positions."""
    values: dict[str, object] = {"max_position_embeddings": 512, "layernorm_epsilon": 1e-12, **changes}
    return ModelConfig(
        architecture="bert",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_hidden_size=ffn,
        vocab_size=vocab,
        **values,  # type: ignore[arg-type]
    )


def _pre(layers: int, hidden: int, heads: int, vocab: int, **changes: object) -> ModelConfig:
    """A shape of Megatron's BERT: LayerNorm before each block, 512 positions."""
    values: dict[str, object] = {"max_position_embeddings": 512, "layernorm_epsilon": 1e-12, **changes}
    return ModelConfig(
        architecture="megatron-bert",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_hidden_size=4 * hidden,
        vocab_size=vocab,
        **values,  # type: ignore[arg-type]
    )


_ERNIE3 = {"type_vocab_size": 4, "task_type_vocab_size": 16, "max_position_embeddings": 2048}
_BASE, _LARGE = (12, 768, 12, 3072), (24, 1024, 16, 4096)

PRESETS: dict[str, ModelConfig] = {
    "roberta-tiny-clue": _post(4, 312, 12, 1248, 8021),
    "roberta-tiny-pair": _post(4, 312, 12, 1248, 8021),
    "roberta-tiny3l312-clue": _post(3, 312, 12, 1248, 8021),
    "roberta-tiny3l768-clue": _post(3, 768, 12, 3072, 8021),
    "roberta-large-clue": _post(*_LARGE, 8021),
    "roberta-large-pair": _post(*_LARGE, 8021),
    "bert-base-clue": _post(*_BASE, 8021),
    "bert-base-chinese": _post(*_BASE, 21128),
    "roberta-wwm-ext": _post(*_BASE, 21128),
    "macbert-base": _post(*_BASE, 21128),
    "erlangshen-roberta-110m": _post(*_BASE, 21128),
    "roberta-wwm-ext-large": _post(*_LARGE, 21128),
    "macbert-large": _post(*_LARGE, 21128),
    "erlangshen-roberta-330m": _post(*_LARGE, 21128),
    "megatron-bert-cased-345m": _pre(24, 1024, 16, 29056),
    "megatron-bert-uncased-345m": _pre(24, 1024, 16, 30592),
    "erlangshen-megatronbert-1.3b": _pre(24, 2048, 8, 21248, activation="gelu_new"),
    "erlangshen-megatronbert-3.9b": _pre(48, 2560, 40, 21248),
    "ernie-1.0-base-zh": _post(*_BASE, 18000, activation="relu", max_position_embeddings=513),
    "ernie-1.0-base-zh-cw": _post(*_BASE, 40000, type_vocab_size=4, task_type_vocab_size=3),
    "ernie-1.0-large-zh-cw": _post(24, 1024, 16, 3072, 18000, activation="relu"),
    "ernie-3.0-base-zh": _post(*_BASE, 40000, **{**_ERNIE3, "task_type_vocab_size": 3}),
    "ernie-3.0-xbase-zh": _post(20, 1024, 16, 4096, 40000, **_ERNIE3),
    "ernie-3.0-medium-zh": _post(6, 768, 12, 3072, 40000, **_ERNIE3),
    "ernie-3.0-nano-zh": _post(4, 312, 12, 1248, 40000, **_ERNIE3),
}
