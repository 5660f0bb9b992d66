"""config.json of a Hugging Face folder from a `ModelConfig`, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpoint.hub_heads import TASK
from megatron.config import ModelConfig
from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Spelling of a family of Hugging Face classes: BertModel, model_type bert, names bert.encoder..."""

    classes: str
    model_type: str
    prefix: str


def family_of(model: ModelConfig) -> Family:
    if model.architecture == "megatron-bert":
        if model.task_type_vocab_size:
            raise UserError(
                "megatron-bert with task types has no Hugging Face class; only bert with task types (Ernie)"
            )
        return Family(classes="MegatronBert", model_type="megatron-bert", prefix="bert.")
    if model.task_type_vocab_size:
        return Family(classes="Ernie", model_type="ernie", prefix="ernie.")
    return Family(classes="Bert", model_type="bert", prefix="bert.")


def hub_config(
    model: ModelConfig,
    family: Family,
    head: str,
    *,
    tokens: list[str],
    labels: list[str],
    task: dict[str, Any] | None,
) -> dict[str, Any]:
    """config.json; every value that the class would otherwise take from its defaults is written.

    head: end of the class name. tokens: the vocabulary. labels: those of a task, empty for none. task: all that the
    checkpoint says of it.
    """
    task_types = {"task_type_vocab_size": model.task_type_vocab_size, "use_task_id": True}
    label_maps = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {
        "architectures": [f"{family.classes}{head}"],
        "model_type": family.model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "intermediate_size": model.ffn_hidden_size,
        "hidden_act": model.activation,
        "layer_norm_eps": model.layernorm_epsilon,
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.max_position_embeddings,
        "type_vocab_size": model.type_vocab_size,
        **(task_types if model.task_type_vocab_size else {}),
        **(label_maps if labels else {}),
        **({TASK: task} if task else {}),
        "initializer_range": model.init_method_std,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "pad_token_id": tokens.index("[PAD]") if "[PAD]" in tokens else 0,
    }


def model_config(
    path: Path, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> tuple[ModelConfig, list[str]]:
    """The shape that config.json gives; the numbers of rows of the tables are those of the tensors."""
    architectures = config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    model_type = config.get("model_type", "megatron-bert" if first.startswith("MegatronBert") else "bert")
    # CLUE and HFL folders call Bert weights "roberta"; a true RoBERTa has one token type and other positions.
    if model_type not in ("bert", "ernie", "megatron-bert", "roberta"):
        raise UserError(f"{path}: model_type {model_type!r} cannot be converted; only bert, ernie and megatron-bert")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path}: position_embedding_type {config['position_embedding_type']!r} is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UserError(f"{path} describes a decoder; only encoders can be converted")

    def value(name: str, kind: type, default: Any = None) -> Any:
        given = config.get(name, default)
        if kind is float and isinstance(given, int) and not isinstance(given, bool):
            given = float(given)
        if not isinstance(given, kind) or isinstance(given, bool) != (kind is bool):
            raise UserError(f"{path}: {name} is {given!r}; a value of type {kind.__name__} is needed")
        return given

    def rows(kind: str) -> int:
        shape = shapes.get(f"{prefix}embeddings.{kind}_embeddings.weight", ())
        return shape[0] if len(shape) == 2 else 0

    numbers = [re.match(rf"{re.escape(prefix)}encoder\.layer\.(\d{{1,6}})\.", name) for name in shapes]
    layers = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    if layers != value("num_hidden_layers", int):
        raise UserError(f"{path}: num_hidden_layers is {config['num_hidden_layers']}, the weights have {layers}")
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    notices = [
        f"{name} is {config[name]} in config.json, but the table has {rows(kind)} rows; the table counts"
        for kind, name in tables.items()
        if name in config and config[name] != rows(kind)
    ]
    if model_type == "roberta" and rows("token_type") == 1:
        raise UserError(f"{path}: a RoBERTa with one token type, whose positions start at 2, cannot be converted")
    activation = value("hidden_act", str, "gelu")
    if activation not in ("gelu", "gelu_new", "relu"):
        raise UserError(f"{path}: hidden_act {activation!r} is not supported; only gelu, gelu_new and relu")
    model = ModelConfig(
        architecture="megatron-bert" if model_type == "megatron-bert" else "bert",
        num_layers=layers,
        hidden_size=value("hidden_size", int),
        num_attention_heads=value("num_attention_heads", int),
        ffn_hidden_size=value("intermediate_size", int),
        max_position_embeddings=rows("position"),
        vocab_size=rows("word"),
        type_vocab_size=rows("token_type"),
        task_type_vocab_size=rows("task_type") if config.get("use_task_id") else 0,
        activation=activation,
        layernorm_epsilon=value("layer_norm_eps", float, 1e-12),
        hidden_dropout=value("hidden_dropout_prob", float, 0.1),
        attention_dropout=value("attention_probs_dropout_prob", float, 0.1),
        init_method_std=value("initializer_range", float, 0.02),
        bert_no_binary_head=True,  # set once the heads are known
    )
    if config.get("use_task_id") and not model.task_type_vocab_size:
        raise UserError(f"{path}: use_task_id is true, but the weights have no task-type table")
    problems = model.problems()
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return model, notices
