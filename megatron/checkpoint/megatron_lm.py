"""Conversion from and to checkpoints of Megatron-LM's BERT (github.com/NVIDIA/Megatron-LM), weights only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.converted import HEADS, Source, check_against_table, check_empty, open_source, save_converted
from megatron.checkpoint.files import new_folder
from megatron.checkpoint.hub_names import parameter_table
from megatron.checkpoint.hub_tokenizer import CASED, SENTENCEPIECE, UNCASED, VOCABULARY, TokenizerFile
from megatron.checkpoint.hub_tokenizer import read_checkpoint_tokenizer as read_tokenizer
from megatron.checkpoint.megatron_lm_names import TIED_COPY, WORD_TABLE, Naming, divided_dim, name_there, nested
from megatron.checkpoint.megatron_lm_read import FILE, TRACKER, Activation, read_megatron_lm
from megatron.config import ModelConfig
from megatron.config.suggest import nearest_divisors
from megatron.errors import UserError
from megatron.files import durable_file, flush_folder

_TOKEN_TYPES, _POSITIONS = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
_PADDING_LOGIT = -1e4  # of rows that are no tokens; in reach of fp16, and a probability of 0


def from_megatron_lm(
    folder: Path,
    save: Path,
    *,
    vocab_file: Path | None = None,
    vocab_size: int | None = None,
    heads: int | None = None,
    activation: Activation | None = None,
) -> tuple[str, ...]:
    """Write a checkpoint of Megatron-LM as checkpoint 0 in the folder `save`, without optimizer. Returns notices.

    vocab_file: goes with the checkpoint, and its size is that of the vocabulary. The rest as in `read_megatron_lm`.
    Raises `UserError` if the checkpoint is damaged, refused or of another model, or `save` holds a checkpoint already.
    """
    check_empty(save)
    content = None
    if vocab_file is not None:
        try:
            content = vocab_file.read_bytes()
        except OSError as error:
            raise UserError(f"--vocab-file {vocab_file}: {error.strerror}") from None
        vocab_size = vocab_size or len(TokenizerFile(kind=UNCASED, name=str(vocab_file), content=content).tokens)
    found = read_megatron_lm(folder, vocab_size=vocab_size, heads=heads, activation=activation)
    tokenizer = None
    if content is not None:
        kind = CASED if found.saved.option("tokenizer_type", str, UNCASED) == CASED else UNCASED
        tokenizer = TokenizerFile(kind=kind, name=VOCABULARY, content=content)
        if len(tokenizer.tokens) > found.model.vocab_size:
            raise UserError(f"{vocab_file} has {len(tokenizer.tokens)} tokens, more than {found.model.vocab_size} rows")
    origin = f"{folder.absolute().name} (Megatron-LM, iteration {found.saved.iteration})"
    save_converted(save, origin, found.model, found.parameters, tokenizer)
    return found.notices


def to_megatron_lm(
    checkpoint: Path, output: Path, *, tensor_parallel: int, stages: int, divisible_by: int, naming: Naming
) -> tuple[str, ...]:
    """Write a checkpoint as Megatron-LM's `release` in version 3.0, without optimizer, fp32. Returns notices.

    divisible_by: the word table is padded to a multiple of it for every tensor-parallel rank, as Megatron-LM's own.
    Raises `UserError` if the checkpoint is missing or damaged, its model has no form there or cannot be divided so, or
    output exists and is not empty.
    """
    source = open_source(checkpoint)
    model = source.model
    _check(source, tensor_parallel, stages)
    if divisible_by < 1:
        raise UserError("--make-vocab-size-divisible-by must be at least 1")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; choose another folder")
    multiple = divisible_by * tensor_parallel
    rows = -(-model.vocab_size // multiple) * multiple
    options = _options(source, tensor_parallel, stages, divisible_by, rows, naming)
    tokenizer = read_tokenizer(source.path, source.tokenizer_type)
    with new_folder(output, overwrite=False) as folder:
        (folder / "release").mkdir()
        for stage in range(stages):
            tensors = _stage(source, stage, stages, rows)
            for rank in range(tensor_parallel):
                name = f"mp_rank_{rank:02d}_{stage:03d}" if stages > 1 else f"mp_rank_{rank:02d}"
                (folder / "release" / name).mkdir()
                part = _rank(tensors, rank, tensor_parallel, naming, stage * (model.num_layers // stages))
                content = {"args": options, "checkpoint_version": 3.0, "iteration": 0, "model": part}
                with durable_file(folder / "release" / name / FILE) as file:
                    torch.save(content, file)
                flush_folder(folder / "release" / name)
        flush_folder(folder / "release")
        files = {TRACKER: b"release"}
        if tokenizer is not None:
            files[tokenizer.name] = tokenizer.content
        for name, bytes_ in files.items():
            with durable_file(folder / name) as file:
                file.write(bytes_)
    # Megatron-Core's other layers, of Transformer Engine, have other names.
    flags = _flags(options, naming) + (["--ckpt-format torch", "--spec local"] if naming == "core" else [])
    return (f"start Megatron-LM with {' '.join(flags)}",)


def _check(source: Source, tensor_parallel: int, stages: int) -> None:
    model = source.model
    if model.architecture != "megatron-bert" or model.task_type_vocab_size or model.activation == "relu":
        raise UserError(f"{source.path}: Megatron-LM has only the architecture megatron-bert, with gelu or gelu_new")
    check_against_table(source, parameter_table(model, ""), "Megatron-LM's BERT")
    there = {head for head in HEADS if any(name.startswith(head) for name in source.shapes)}
    if "lm_head." not in there or len(there) == 2:
        raise UserError(f"{source.path} lacks a head; Megatron-LM's BERT needs lm_head, and pooler with binary_head")
    problems = [
        f"{flag} {parts} does not divide {what} {number}; nearest that do: {nearest_divisors(number, parts)}"
        for flag, parts, what, number in (
            ("--tensor-model-parallel-size", tensor_parallel, "the heads", model.num_attention_heads),
            ("--tensor-model-parallel-size", tensor_parallel, "ffn_hidden_size", model.ffn_hidden_size),
            ("--pipeline-model-parallel-size", stages, "the layers", model.num_layers),
        )
        if parts < 1 or number % parts
    ]
    if problems:
        raise UserError("; ".join(problems))


def _stage(source: Source, stage: int, stages: int, rows: int) -> dict[str, torch.Tensor]:
    """The whole tensors of a stage by global name, the word table padded to `rows`; the tied copy has its own name."""
    model = source.model
    layers = model.num_layers // stages
    own = tuple(f"encoder.layers.{stage * layers + number}." for number in range(layers))
    own += ("embeddings.",) if stage == 0 else ()
    own += ("encoder.final_layernorm.", *HEADS) if stage == stages - 1 else ()
    tensors = {name: source.read(name) for name in source.shapes if name.startswith(own)}
    if stages > 1 and stage == stages - 1:
        tensors["tied copy"] = source.read(WORD_TABLE)
    for name, fill in ((WORD_TABLE, 0.0), ("tied copy", 0.0), ("lm_head.bias", _PADDING_LOGIT)):
        if name in tensors:
            padding = tensors[name].new_full((rows - model.vocab_size, *tensors[name].shape[1:]), fill)
            tensors[name] = torch.cat([tensors[name], padding])
    if stage == 0 and "binary_head.weight" not in source.shapes:
        # Without a binary head Megatron-LM has no token types: all tokens are of type 0, which is a constant.
        tensors[_POSITIONS] += tensors.pop(_TOKEN_TYPES)[0]
    return tensors


def _rank(
    tensors: Mapping[str, torch.Tensor], rank: int, tensor_parallel: int, naming: Naming, first_layer: int
) -> dict[str, Any]:
    """What a tensor-parallel rank holds of a stage, as it nests it."""
    part = {}
    for name, tensor in tensors.items():
        copy = name == "tied copy"
        dim = divided_dim(WORD_TABLE if copy else name)
        local = tensor if dim is None else tensor.chunk(tensor_parallel, dim)[rank]
        part[TIED_COPY[naming] if copy else name_there(name, first_layer, naming)] = local.clone()
    return nested(part, naming)


def _options(
    source: Source, tensor_parallel: int, stages: int, divisible_by: int, rows: int, naming: Naming
) -> argparse.Namespace:
    """Megatron-LM's `args`: those that it compares on loading, and those that say what the weights mean.

    The tanh GELU is an option of the classic model; that of Megatron-Core has it only fused, and erf in the head.
    """
    model: ModelConfig = source.model
    tokenizer = {} if source.tokenizer_type in ("", SENTENCEPIECE) else {"tokenizer_type": source.tokenizer_type}
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        kv_channels=model.head_size,
        max_position_embeddings=model.max_position_embeddings,
        vocab_size=model.vocab_size,
        padded_vocab_size=rows,
        make_vocab_size_divisible_by=divisible_by,
        layernorm_epsilon=model.layernorm_epsilon,
        norm_epsilon=model.layernorm_epsilon,
        openai_gelu=model.activation == "gelu_new" and naming == "classic",
        bias_gelu_fusion=model.activation == "gelu_new" and naming == "core",
        bert_binary_head="binary_head.weight" in source.shapes,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method_std=model.init_method_std,
        apply_residual_connection_post_layernorm=False,
        position_embedding_type="learned_absolute",
        untie_embeddings_and_output_weights=False,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=None,
        data_parallel_random_init=False,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        iteration=0,
        params_dtype=torch.float32,
        **tokenizer,
    )


def _flags(options: argparse.Namespace, naming: Naming) -> list[str]:
    """The flags of Megatron-LM that are not its defaults and must be as they were."""
    flags = [
        "--finetune",
        f"--tensor-model-parallel-size {options.tensor_model_parallel_size}",
        f"--pipeline-model-parallel-size {options.pipeline_model_parallel_size}",
        f"--make-vocab-size-divisible-by {options.make_vocab_size_divisible_by}",
        f"--{'norm' if naming == 'core' else 'layernorm'}-epsilon {options.layernorm_epsilon}",
    ]
    flags += [] if options.bias_gelu_fusion else ["--no-bias-gelu-fusion"]
    flags += ["--openai-gelu"] if options.openai_gelu else []
    return flags + ([] if options.bert_binary_head else ["--bert-no-binary-head"])
