"""Conversion between checkpoints and Hugging Face folders, pre-training heads included.

    architecture megatron-bert          MegatronBertForPreTraining
    architecture bert                   BertForPreTraining
    ... with task_type_vocab_size > 0   ErnieForPreTraining

Names map one to one, except that the rows of query, key and value are one matrix here, ordered [head, q|k|v, row of
the head], so that any tensor-parallel size divides it.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron import __version__
from megatron.checkpoint.files import TensorWriter, durable_file, new_folder, read_json, write_json
from megatron.checkpoint.hub_tokenizer import (
    TokenizerFile,
    read_checkpoint_tokenizer,
    read_hub_tokenizer,
    write_hub_tokenizer,
)
from megatron.checkpoint.hub_weights import HubWeights, open_weights
from megatron.checkpoint.model_card import model_card
from megatron.checkpoint.store import (
    NamedTensor,
    find_checkpoint,
    read_config,
    read_train_state,
    read_weight,
    save_checkpoint,
    weight_shapes,
)
from megatron.config import ModelConfig, model_from_dict, to_dict
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import ShardSpec

HEADS = ("lm_head.", "pooler.", "binary_head.")
"""Beginnings of names that a model may lack; training then initialises them."""

# Called with the model, its weights by our names, and the Hugging Face folder, before anything is published.
Check = Callable[[ModelConfig, Mapping[str, torch.Tensor], Path], None]


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """What a Hugging Face folder holds, in our terms. parameters: global name -> whole fp32 tensor."""

    model: ModelConfig
    parameters: dict[str, torch.Tensor]
    tokenizer: TokenizerFile | None
    notices: tuple[str, ...]


def to_huggingface(
    checkpoint: Path, output: Path, *, overwrite: bool = False, check: Check | None = None
) -> tuple[str, ...]:
    """Write a checkpoint as a folder that AutoModel and AutoTokenizer load; weights in fp32. Returns notices.

    checkpoint: a save folder or one checkpoint in it. output appears only when all is written and `check` passed.
    Raises `UserError` if the checkpoint is missing or damaged, holds weights that no Hugging Face class has, or
    output exists and is not empty (`overwrite` replaces an earlier export).
    """
    found = find_checkpoint(checkpoint, context=ParallelContext.single())
    if found is None:
        raise UserError(f"{checkpoint} holds no checkpoint")
    config = read_config(found)
    if not isinstance(config.get("model"), dict):
        raise UserError(f"{found / 'config.json'} has no section model; it is not the configuration of a training run")
    model = model_from_dict(config["model"])
    family = _family(model)
    table = parameter_table(model, family.prefix)
    stored = weight_shapes(found)
    _compare_with_table(found, table, stored)
    data = config.get("data")
    tokenizer = read_checkpoint_tokenizer(found, data.get("tokenizer_type", "") if isinstance(data, dict) else "")
    tokens = [] if tokenizer is None else tokenizer.tokens
    notices = [] if tokenizer else [f"{found} holds no vocabulary; AutoTokenizer will not load the folder"]
    lacking = [head.rstrip(".") for head in HEADS if not any(name.startswith(head) for name in stored)]
    head = "Model" if "lm_head" in lacking else "ForMaskedLM" if lacking else "ForPreTraining"
    if lacking:
        notices.append(f"the checkpoint has no {', '.join(lacking)}: exported as {family.classes}{head}")
    with new_folder(output, overwrite=overwrite) as folder:
        with durable_file(folder / "model.safetensors") as file:
            _write_weights(file, found, model, {name: table[name] for name in sorted(stored)})
        write_json(folder / "config.json", _hub_config(model, family, head, tokens))
        if tokenizer is not None:
            notices += write_hub_tokenizer(tokenizer, folder, model.max_position_embeddings)
        name, class_name = output.absolute().name, f"{family.classes}{head}"
        card = model_card(name, class_name, config, read_train_state(found), family.model_type)
        with durable_file(folder / "README.md") as file:
            file.write(card.encode())
        if check is not None:
            check(model, {name: read_weight(found, name) for name in stored}, folder)
    return tuple(notices)


def from_huggingface(folder: Path, save: Path, *, check: Check | None = None) -> tuple[str, ...]:
    """Write a Hugging Face folder as checkpoint 0 in the folder `save`, without optimizer. Returns notices.

    Raises `UserError` if the folder is damaged or of another architecture, or `save` holds a checkpoint already.
    """
    context = ParallelContext.single()
    if find_checkpoint(save, context=context) is not None:
        raise UserError(f"{save} already holds a checkpoint; choose another folder")
    hub = read_huggingface(folder)
    if check is not None:
        check(hub.model, hub.parameters, folder)
    parameters = {
        name: NamedTensor(tensor=tensor, shard=ShardSpec(global_shape=tuple(tensor.shape)))
        for name, tensor in hub.parameters.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        extra_files = {}
        if hub.tokenizer is not None:
            extra_files[hub.tokenizer.name] = Path(temporary) / hub.tokenizer.name
            extra_files[hub.tokenizer.name].write_bytes(hub.tokenizer.content)
        save_checkpoint(
            save,
            0,
            model=parameters,
            optimizer={},
            config={
                "model": to_dict(hub.model),
                "data": {"tokenizer_type": hub.tokenizer.kind} if hub.tokenizer else {},
                "source": {"folder": folder.absolute().name, "converted_by": f"megatron {__version__}"},
            },
            train_state={"step": 0, "consumed_samples": 0},
            extra_files=extra_files,
            context=context,
        )
    return hub.notices


def read_huggingface(folder: Path) -> HubModel:
    """Read a Hugging Face folder. Missing heads, and weights that have no place here, are left out and noted.

    Raises `UserError` if files are missing or damaged, or the model is not one of the three above.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    config = read_json(folder / "config.json")
    weights = open_weights(folder)
    prefix = _prefix(folder, weights)
    model, notices = _model_config(folder / "config.json", config, weights, prefix)
    table = parameter_table(model, prefix)
    if "cls.predictions.bias" not in weights.shapes:  # one tensor under two names: either may have been saved
        table["lm_head.bias"] = (table["lm_head.bias"][0], (f"{_DECODER}.bias",))
    lacking = {name for name, (_, theirs) in table.items() if not all(their in weights.shapes for their in theirs)}
    encoder = sorted(name for name in lacking if not name.startswith(HEADS))
    if encoder:
        theirs = ", ".join(table[encoder[0]][1])
        raise UserError(f"{folder} lacks {len(encoder)} tensors of the encoder, first {theirs}")
    dropped = [head for head in HEADS if any(name.startswith(head) for name in lacking)]
    if "lm_head." not in dropped and not _is_tied(weights, prefix):
        dropped.append("lm_head.")
        notices.append("the output matrix is not the word table (untied); such a head has no place here")
    if dropped:
        names = ", ".join(head.rstrip(".") for head in dropped)
        notices.append(f"left out, training will initialise it: {names}")
    kept = {name: row for name, row in table.items() if not name.startswith(tuple(dropped))}
    used = {their for _, theirs in kept.values() for their in theirs}
    ignored = sorted(name for name in weights.shapes if name not in used and not name.endswith(_BUFFERS))
    if ignored:
        notices.append(f"not converted: {', '.join(ignored[:4])}" + (", ..." if len(ignored) > 4 else ""))
    _check_shapes(folder, kept, weights)
    tokenizer, more = read_hub_tokenizer(folder)
    if tokenizer is not None and len(tokenizer.tokens) > model.vocab_size:
        raise UserError(
            f"{folder}: the vocabulary has {len(tokenizer.tokens)} tokens, the word table only {model.vocab_size} rows"
        )
    parameters = {
        name: _merge([weights.read(their).float() for their in theirs], model.num_attention_heads)
        for name, (_, theirs) in kept.items()
    }
    model = dataclasses.replace(model, bert_no_binary_head={"pooler.", "binary_head."} <= set(dropped))
    return HubModel(model=model, parameters=parameters, tokenizer=tokenizer, notices=(*notices, *more))


_DECODER = "cls.predictions.decoder"
_BUFFERS = ("position_ids", "token_type_ids", f"{_DECODER}.weight", f"{_DECODER}.bias")

# name here -> (global shape, name there; query, key and value: three names, whose rows are interleaved here)
Table = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]


def parameter_table(model: ModelConfig, prefix: str) -> Table:
    """Names and shapes of all parameters, heads included. prefix: that of the encoder there, e.g. "bert."."""
    h, ffn = model.hidden_size, model.ffn_hidden_size
    table: Table = {}

    def tensor(ours: str, shape: tuple[int, ...], *theirs: str) -> None:
        table[ours] = (shape, theirs)

    def linear(ours: str, outputs: int, inputs: int, *theirs: str) -> None:
        tensor(f"{ours}.weight", (outputs, inputs), *(f"{their}.weight" for their in theirs))
        tensor(f"{ours}.bias", (outputs,), *(f"{their}.bias" for their in theirs))

    def layernorm(ours: str, their: str) -> None:
        tensor(f"{ours}.weight", (h,), f"{their}.weight")
        tensor(f"{ours}.bias", (h,), f"{their}.bias")

    rows = {
        "word": model.vocab_size,
        "position": model.max_position_embeddings,
        "token_type": model.type_vocab_size,
        "task_type": model.task_type_vocab_size,
    }
    for kind, count in rows.items():
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
    return table


def _merge(tensors: list[torch.Tensor], heads: int) -> torch.Tensor:
    """Query, key, value [h, ...] -> [3h, ...] with rows [head, q|k|v, row of the head]; a single tensor as it is."""
    if len(tensors) == 1:
        return tensors[0]
    parts = [tensor.unflatten(0, (heads, -1)) for tensor in tensors]
    return torch.stack(parts, dim=1).flatten(0, 2)


def _split(tensor: torch.Tensor, heads: int, parts: int) -> list[torch.Tensor]:
    """The inverse of `_merge`."""
    if parts == 1:
        return [tensor]
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, parts, -1)).unbind(1)]


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Spelling of a family of Hugging Face classes: BertModel, model_type bert, names bert.encoder..."""

    classes: str
    model_type: str
    prefix: str


def _family(model: ModelConfig) -> _Family:
    if model.architecture == "megatron-bert":
        if model.task_type_vocab_size:
            raise UserError(
                "megatron-bert with task types has no Hugging Face class; only bert with task types (Ernie)"
            )
        return _Family(classes="MegatronBert", model_type="megatron-bert", prefix="bert.")
    if model.task_type_vocab_size:
        return _Family(classes="Ernie", model_type="ernie", prefix="ernie.")
    return _Family(classes="Bert", model_type="bert", prefix="bert.")


def _hub_config(model: ModelConfig, family: _Family, head: str, tokens: list[str]) -> dict[str, Any]:
    """config.json; every value that the class would otherwise take from its defaults is written."""
    task_types = {"task_type_vocab_size": model.task_type_vocab_size, "use_task_id": True}
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
        "initializer_range": model.init_method_std,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "pad_token_id": tokens.index("[PAD]") if "[PAD]" in tokens else 0,
    }


def _compare_with_table(checkpoint: Path, table: Table, stored: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in table if name not in stored and not name.startswith(HEADS)]
    problems += [f"{name} has no place in a Hugging Face class" for name in stored if name not in table]
    problems += [
        f"{name} is {list(stored[name])} instead of {list(shape)}"
        for name, (shape, _) in table.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{checkpoint} does not hold the model of its config.json: {'; '.join(problems[:3])}{more}")


def _write_weights(file: BinaryIO, checkpoint: Path, model: ModelConfig, table: Table) -> None:
    """Write the tensors one by one under their Hugging Face names, fp32."""
    shapes = {
        their: ((shape[0] // len(theirs), *shape[1:]), torch.float32)
        for shape, theirs in table.values()
        for their in theirs
    }
    writer = TensorWriter(file, shapes)
    for ours, (_, theirs) in table.items():
        parts = _split(read_weight(checkpoint, ours).float(), model.num_attention_heads, len(theirs))
        for their, part in zip(theirs, parts, strict=True):
            writer.write(their, part)


def _prefix(folder: Path, weights: HubWeights) -> str:
    """The beginning of the encoder's names: "bert.", "ernie.", or nothing where only the encoder was saved."""
    ending = "embeddings.word_embeddings.weight"
    found = [name.removesuffix(ending) for name in weights.shapes if name.endswith(ending)]
    if len(found) != 1 or found[0] not in ("", "bert.", "ernie."):
        prefixes = ", ".join(repr(prefix) for prefix in found) or "no word table"
        raise UserError(f"{folder} does not hold the weights of a BERT, MegatronBert or Ernie (found {prefixes})")
    return found[0]


def _is_tied(weights: HubWeights, prefix: str) -> bool:
    """Whether the output matrix, if it was saved at all, is the word table."""
    if f"{_DECODER}.weight" not in weights.shapes:
        return True
    return torch.equal(weights.read(f"{_DECODER}.weight"), weights.read(f"{prefix}embeddings.word_embeddings.weight"))


def _check_shapes(folder: Path, table: Table, weights: HubWeights) -> None:
    for shape, theirs in table.values():
        for their in theirs:
            expected = (shape[0] // len(theirs), *shape[1:])
            if weights.shapes[their] != expected:
                raise UserError(
                    f"{folder}: {their} is {list(weights.shapes[their])}, but config.json says {list(expected)}"
                )


def _model_config(
    path: Path, config: dict[str, Any], weights: HubWeights, prefix: str
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
        shape = weights.shapes.get(f"{prefix}embeddings.{kind}_embeddings.weight", ())
        return shape[0] if len(shape) == 2 else 0

    numbers = [re.match(rf"{re.escape(prefix)}encoder\.layer\.(\d{{1,6}})\.", name) for name in weights.shapes]
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
