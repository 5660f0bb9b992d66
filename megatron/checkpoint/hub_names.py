"""Parameter names and shapes here and in Hugging Face classes.

Names map one to one, except that the rows of query, key and value are one matrix here, ordered [head, q|k|v, row of
the head], so that any tensor-parallel size divides it.
"""

from __future__ import annotations

import torch

from megatron.config import ModelConfig

# name here -> (global shape, name there; query, key and value: three names, whose rows are interleaved here)
Table = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]


def parameter_table(model: ModelConfig, prefix: str, *, task_head: str = "", outputs: int = 0) -> Table:
    """Names and shapes of all parameters, heads included.

    prefix: beginning of the encoder's names there, e.g. "bert.". task_head: name of a task's linear layer there, ""
    for none; outputs: its logits.
    """
    h, ffn = model.hidden_size, model.ffn_hidden_size
    table: Table = {}

    def tensor(ours: str, shape: tuple[int, ...], *theirs: str) -> None:
        table[ours] = (shape, theirs)

    def linear(ours: str, rows: int, columns: int, *theirs: str) -> None:
        tensor(f"{ours}.weight", (rows, columns), *(f"{their}.weight" for their in theirs))
        tensor(f"{ours}.bias", (rows,), *(f"{their}.bias" for their in theirs))

    def layernorm(ours: str, their: str) -> None:
        tensor(f"{ours}.weight", (h,), f"{their}.weight")
        tensor(f"{ours}.bias", (h,), f"{their}.bias")

    tables = {
        "word": model.vocab_size,
        "position": model.max_position_embeddings,
        "token_type": model.type_vocab_size,
        "task_type": model.task_type_vocab_size,
    }
    for kind, count in tables.items():
        if count:
            tensor(f"embeddings.{kind}_embeddings.weight", (count, h), f"{prefix}embeddings.{kind}_embeddings.weight")
    norm_first = model.architecture == "megatron-bert"
    if not norm_first:
        layernorm("embeddings.layernorm", f"{prefix}embeddings.LayerNorm")
    for number in range(model.num_layers):
        ours, theirs = f"encoder.layers.{number}", f"{prefix}encoder.layer.{number}"
        query_key_value = (f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
        linear(f"{ours}.attention.query_key_value", 3 * h, h, *query_key_value)
        linear(f"{ours}.attention.dense", h, h, f"{theirs}.attention.output.dense")
        linear(f"{ours}.mlp.dense_h_to_4h", ffn, h, f"{theirs}.intermediate.dense")
        linear(f"{ours}.mlp.dense_4h_to_h", h, ffn, f"{theirs}.output.dense")
        layernorm(f"{ours}.attention_layernorm", f"{theirs}.attention.{'ln' if norm_first else 'output.LayerNorm'}")
        layernorm(f"{ours}.mlp_layernorm", f"{theirs}.{'ln' if norm_first else 'output.LayerNorm'}")
    if norm_first:
        layernorm("encoder.final_layernorm", f"{prefix}encoder.ln")
    linear("pooler.dense", h, h, f"{prefix}pooler.dense")
    linear("lm_head.dense", h, h, "cls.predictions.transform.dense")
    layernorm("lm_head.layernorm", "cls.predictions.transform.LayerNorm")
    tensor("lm_head.bias", (model.vocab_size,), "cls.predictions.bias")
    linear("binary_head", 2, h, "cls.seq_relationship")
    if task_head:
        linear("task_head", outputs, h, task_head)
    return table


def merge(tensors: list[torch.Tensor], heads: int) -> torch.Tensor:
    """Query, key, value [h, ...] -> [3h, ...] with rows [head, q|k|v, row of the head]; a single tensor as it is."""
    if len(tensors) == 1:
        return tensors[0]
    parts = [tensor.unflatten(0, (heads, -1)) for tensor in tensors]
    return torch.stack(parts, dim=1).flatten(0, 2)


def split(tensor: torch.Tensor, heads: int, parts: int) -> list[torch.Tensor]:
    """The inverse of `merge`."""
    if parts == 1:
        return [tensor]
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, parts, -1)).unbind(1)]
