"""Tensors of Megatron-LM's BERT: their names, their division among ranks, the order of query, key and value.

"classic" names are those of Megatron-LM until 2026, in nested dictionaries; "core" names those of Megatron-Core.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch

Naming = Literal["classic", "core"]

# module here -> (classic, core)
_LAYER = {
    "attention_layernorm": ("input_layernorm", "input_layernorm"),
    "attention.query_key_value": ("self_attention.query_key_value", "self_attention.linear_qkv"),
    "attention.dense": ("self_attention.dense", "self_attention.linear_proj"),
    "mlp_layernorm": ("post_attention_layernorm", "pre_mlp_layernorm"),
    "mlp.dense_h_to_4h": ("mlp.dense_h_to_4h", "mlp.linear_fc1"),
    "mlp.dense_4h_to_h": ("mlp.dense_4h_to_h", "mlp.linear_fc2"),
}
_OUTSIDE = {
    "embeddings.word_embeddings": ("language_model.embedding.word_embeddings", "embedding.word_embeddings"),
    "embeddings.position_embeddings": ("language_model.embedding.position_embeddings", "embedding.position_embeddings"),
    "embeddings.token_type_embeddings": (
        "language_model.embedding.tokentype_embeddings",
        "embedding.tokentype_embeddings",
    ),
    "encoder.final_layernorm": ("language_model.encoder.final_layernorm", "encoder.final_layernorm"),
    "pooler.dense": ("language_model.pooler.dense", "pooler.dense"),
    "lm_head.dense": ("lm_head.dense", "lm_head.dense"),
    "lm_head.layernorm": ("lm_head.layernorm", "lm_head.layer_norm"),
    "lm_head": ("lm_head", "output_layer"),  # the bias of the logits
    "binary_head": ("binary_head", "binary_head"),
}
_LAYERS = ("language_model.encoder.layers", "encoder.layers")

WORD_TABLE = "embeddings.word_embeddings.weight"
TIED_COPY = {"classic": "word_embeddings_for_head.weight", "core": "output_layer.weight"}
"""The word table's copy on the last of several pipeline stages."""

_DIVIDED = {
    WORD_TABLE: 0,
    "lm_head.bias": 0,
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "mlp.dense_4h_to_h.weight": 1,
}

# Spellings of single versions: the first of 2020, those since 2023-09, and layers of Transformer Engine.
_SPELLINGS = (
    (r"^language_model\.transformer\.", "language_model.encoder."),
    (r"^(language_model\.encoder\.layers\.\d+)\.attention\.", r"\1.self_attention."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.post_attention_norm\.", ".post_attention_layernorm."),
    (r"\.final_norm\.", ".final_layernorm."),
    (r"^lm_head\.norm\.", "lm_head.layernorm."),
    (r"\.self_attention\.linear_qkv\.layer_norm_(weight|bias)$", r".input_layernorm.\1"),
    (r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\1"),
)

_HERE_IN_LAYER = {theirs: ours for ours, both in _LAYER.items() for theirs in both}
_HERE = {theirs: ours for ours, both in _OUTSIDE.items() for theirs in both}


def name_here(theirs: str, first_layer: int) -> str | None:
    """The global name of a tensor, in any of the namings; None if it has no place here.

    first_layer: number of the first layer in the part of the model that the tensor is from.
    """
    for pattern, replacement in _SPELLINGS:
        theirs = re.sub(pattern, replacement, theirs)
    module, _, kind = theirs.rpartition(".")
    match = re.fullmatch(r"(?:language_model\.)?encoder\.layers\.(\d{1,6})\.(.+)", module)
    if match and match[2] in _HERE_IN_LAYER:
        return f"encoder.layers.{first_layer + int(match[1])}.{_HERE_IN_LAYER[match[2]]}.{kind}"
    if module in _HERE and theirs not in TIED_COPY.values():
        return f"{_HERE[module]}.{kind}"
    return None


def name_there(ours: str, first_layer: int, naming: Naming) -> str:
    """The inverse of `name_here`."""
    column = 0 if naming == "classic" else 1
    module, _, kind = ours.rpartition(".")
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", module)
    if match:
        return f"{_LAYERS[column]}.{int(match[1]) - first_layer}.{_LAYER[match[2]][column]}.{kind}"
    return f"{_OUTSIDE[module][column]}.{kind}"


def divided_dim(ours: str) -> int | None:
    """The dimension that tensor parallelism divides, None for a tensor that every rank holds."""
    return _DIVIDED.get(re.sub(r"^encoder\.layers\.\d+\.", "", ours))


def by_head(rows: torch.Tensor, version: float, heads: int) -> torch.Tensor:
    """Rows of query, key and value of one tensor-parallel rank, in the order [head, q|k|v, row of the head].

    That of checkpoint versions 2.0 and 3.0, and ours. heads: those of the rank.
    Version 0: [q|k|v, head, row]; 1.0: [head, row, q|k|v].
    """
    if version >= 2:
        return rows
    if version >= 1:
        return rows.unflatten(0, (heads, -1, 3)).transpose(1, 2).flatten(0, 2)
    return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def nested(tensors: dict[str, torch.Tensor], naming: Naming) -> dict[str, Any]:
    """Tensors by name as Megatron-LM's `state_dict_for_save_checkpoint` nests them."""
    if naming == "core":
        return dict(tensors)
    result: dict[str, Any] = {}
    for name, tensor in tensors.items():
        levels = 3 if name.startswith("language_model.embedding.") else 2 if name.startswith("language_model.") else 1
        *path, last = name.split(".", levels)
        inner = result
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = tensor
    return result
