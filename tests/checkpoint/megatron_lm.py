"""Checkpoints in Megatron-LM's layout for the tests of conversion, written from a Hugging Face model.

Written from the description of the format alone: nothing here is shared with the code under test.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers


def padded_rows(theirs: transformers.PreTrainedModel) -> int:
    """Rows of the word table, of which config.vocab_size are tokens."""
    return -(-theirs.config.vocab_size // 32) * 32


def query_key_value(layer: Any, kind: str, version: float, rank: int, ranks: int, heads: int) -> torch.Tensor:
    """The rows of a rank in the order of a checkpoint version."""
    attention = layer.attention.self
    wanted = range(rank * heads // ranks, (rank + 1) * heads // ranks)
    size = attention.query.bias.numel() // heads
    parts = [getattr(part, kind).detach() for part in (attention.query, attention.key, attention.value)]
    if version == 0:  # query of all heads, then key, then value
        rows = [part[head * size + row] for part in parts for head in wanted for row in range(size)]
    elif version == 1:  # of each head, row by row, query, key and value
        rows = [part[head * size + row] for head in wanted for row in range(size) for part in parts]
    else:  # of each head query, key, value
        rows = [part[head * size + row] for head in wanted for part in parts for row in range(size)]
    return torch.stack(rows)


def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """With rows that are no tokens, of values that would show."""
    return torch.cat([tensor.detach(), torch.full((rows - len(tensor), *tensor.shape[1:]), 7.0)])


def layer_tensors(layer: Any, version: float, rank: int, ranks: int, heads: int) -> dict[str, torch.Tensor]:
    """A layer of MegatronBert under Megatron-LM's names."""

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().chunk(ranks, 0)[rank]

    def columns(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().chunk(ranks, 1)[rank]

    attention = "self_attention" if version > 1 else "attention"
    return {
        "input_layernorm.weight": layer.attention.ln.weight,
        "input_layernorm.bias": layer.attention.ln.bias,
        f"{attention}.query_key_value.weight": query_key_value(layer, "weight", version, rank, ranks, heads),
        f"{attention}.query_key_value.bias": query_key_value(layer, "bias", version, rank, ranks, heads),
        f"{attention}.dense.weight": columns(layer.attention.output.dense.weight),
        f"{attention}.dense.bias": layer.attention.output.dense.bias,
        "post_attention_layernorm.weight": layer.ln.weight,
        "post_attention_layernorm.bias": layer.ln.bias,
        "mlp.dense_h_to_4h.weight": rows(layer.intermediate.dense.weight),
        "mlp.dense_h_to_4h.bias": rows(layer.intermediate.dense.bias),
        "mlp.dense_4h_to_h.weight": columns(layer.output.dense.weight),
        "mlp.dense_4h_to_h.bias": layer.output.dense.bias,
    }


def stage_model(
    theirs: transformers.PreTrainedModel, layers: range, version: float, rank: int, ranks: int, binary_head: bool
) -> dict[str, Any]:
    """The entry `model` (or `model0`...) of a file: layers, embeddings with the first, heads with the last."""
    config, bert, heads = theirs.config, theirs.bert, theirs.cls.predictions
    encoder: dict[str, Any] = {}
    for number in layers:
        part = layer_tensors(bert.encoder.layer[number], version, rank, ranks, config.num_attention_heads)
        encoder |= {f"layers.{number - layers.start}.{name}": tensor for name, tensor in part.items()}
    language_model: dict[str, Any] = {"encoder" if version > 1 else "transformer": encoder}
    model: dict[str, Any] = {"language_model": language_model}
    table = padded(bert.embeddings.word_embeddings.weight, padded_rows(theirs)).chunk(ranks)[rank]
    if layers.start == 0:
        language_model["embedding"] = {
            "word_embeddings": {"weight": table},
            "position_embeddings": {"weight": bert.embeddings.position_embeddings.weight},
        }
        if binary_head:
            types = bert.embeddings.token_type_embeddings.weight
            language_model["embedding"]["tokentype_embeddings"] = {"weight": types}
    if layers.stop == config.num_hidden_layers:
        encoder |= {"final_layernorm.weight": bert.encoder.ln.weight, "final_layernorm.bias": bert.encoder.ln.bias}
        model["lm_head"] = {
            "bias": padded(heads.bias, padded_rows(theirs)).chunk(ranks)[rank],
            "dense.weight": heads.transform.dense.weight,
            "dense.bias": heads.transform.dense.bias,
            "layernorm.weight": heads.transform.LayerNorm.weight,
            "layernorm.bias": heads.transform.LayerNorm.bias,
        }
        if binary_head:
            language_model["pooler"] = {"dense.weight": bert.pooler.dense.weight, "dense.bias": bert.pooler.dense.bias}
            model["binary_head"] = {
                "weight": theirs.cls.seq_relationship.weight,
                "bias": theirs.cls.seq_relationship.bias,
            }
        if layers.start:
            model["word_embeddings_for_head"] = {"weight": table}
    return detached(model)


def detached(value: Any) -> Any:
    """Plain tensors that own their memory."""
    if isinstance(value, dict):
        return {name: detached(part) for name, part in value.items()}
    return value.detach().clone()


def options(theirs: transformers.PreTrainedModel, tp: int, pp: int, **changes: Any) -> argparse.Namespace:
    """The command line that Megatron-LM puts into its files."""
    config = theirs.config
    values = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "padded_vocab_size": padded_rows(theirs),
        "layernorm_epsilon": config.layer_norm_eps,
        "openai_gelu": config.hidden_act == "gelu_new",
        "bias_gelu_fusion": False,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "tokenizer_type": "BertWordPieceCase",
        "params_dtype": torch.float16,
        "consumed_train_samples": 320,
    }
    return argparse.Namespace(**values | changes)


def write_megatron_lm(
    theirs: transformers.PreTrainedModel,
    folder: Path,
    *,
    version: float = 3.0,
    tp: int = 1,
    pp: int = 1,
    chunks: int = 1,
    name: str = "iter_0000010",
    binary_head: bool = True,
    zipped: bool = True,
    **changes: Any,
) -> Path:
    """FOLDER as Megatron-LM's --save leaves it. chunks: parts of a stage (interleaved). changes: of its options."""
    per_chunk = theirs.config.num_hidden_layers // (pp * chunks)
    for rank in range(tp):
        for stage in range(pp):
            content: dict[str, Any] = {"iteration": 10, "args": options(theirs, tp, pp, **changes)}
            if version:
                content["checkpoint_version"] = version
            for chunk in range(chunks):
                first = (chunk * pp + stage) * per_chunk
                part = stage_model(theirs, range(first, first + per_chunk), version, rank, tp, binary_head)
                content["model" if chunks == 1 else f"model{chunk}"] = part
            content["optimizer"] = {"optimizer": {"state": {0: {"step": 10, "exp_avg": torch.ones(3)}}}}
            content["rng_state"] = [{"torch_rng_state": torch.get_rng_state(), "random_rng_state": (3, (1, 2), None)}]
            place = folder / name / (f"mp_rank_{rank:02d}" if pp == 1 else f"mp_rank_{rank:02d}_{stage:03d}")
            place.mkdir(parents=True)
            torch.save(content, place / "model_optim_rng.pt", _use_new_zipfile_serialization=zipped)
    text = "release" if name == "release" else str(int(name.removeprefix("iter_")))
    (folder / "latest_checkpointed_iteration.txt").write_text(text)
    return folder
