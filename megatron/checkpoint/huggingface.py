"""Conversion between checkpoints and Hugging Face folders, heads included.

architecture megatron-bert                 MegatronBertForPreTraining
architecture bert                          BertForPreTraining
bert with task_type_vocab_size > 0         ErnieForPreTraining
any of them with the head of a task        ...ForSequenceClassification, ...ForQuestionAnswering and so on
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.converted import HEADS, Source, check_against_table, check_empty, open_source, save_converted
from megatron.checkpoint.direct import write_hashed
from megatron.checkpoint.extend_vocabulary import extend_vocabulary
from megatron.checkpoint.files import new_folder, read_json, safetensors_header, write_json
from megatron.checkpoint.hub_config import family_of, hub_config, model_config
from megatron.checkpoint.hub_heads import TASK_HEADS, description_of_folder, head_of_checkpoint
from megatron.checkpoint.hub_names import Table, merge, parameter_table, split
from megatron.checkpoint.hub_tokenizer import (
    TokenizerFile,
    read_checkpoint_tokenizer,
    read_hub_tokenizer,
    write_hub_tokenizer,
)
from megatron.checkpoint.hub_weights import HubWeights, open_weights
from megatron.checkpoint.model_card import model_card
from megatron.checkpoint.store import read_train_state
from megatron.config import ModelConfig
from megatron.errors import UserError
from megatron.files import durable_file

# Called with the model, its weights by our names, and the Hugging Face folder, before anything is published.
Check = Callable[[ModelConfig, Mapping[str, torch.Tensor], Path], None]


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """What a Hugging Face folder holds, in our terms. parameters: global name -> whole fp32 tensor.

    task: the description of the task whose head it has.
    """

    model: ModelConfig
    parameters: dict[str, torch.Tensor]
    tokenizer: TokenizerFile | None
    task: dict[str, Any] | None
    notices: tuple[str, ...]


def to_huggingface(
    checkpoint: Path,
    output: Path,
    *,
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    check: Check | None = None,
) -> tuple[str, ...]:
    """Write a checkpoint as a folder that AutoModel and AutoTokenizer load; weights in fp32. Returns notices.

    checkpoint: a save folder or one checkpoint in it. output appears only when all is written and `check` passed.
    max_file_bytes: weights go into several files with an index if they are more; one tensor is never divided.
    Raises `UserError` if the checkpoint is missing or damaged, holds weights that no Hugging Face class has, or
    output exists and is not empty (`overwrite` replaces an earlier export).
    """
    source = open_source(checkpoint)
    found, config, model, stored = source.path, source.config, source.model, source.shapes
    family = family_of(model)
    task_head, labels = head_of_checkpoint(config, stored, found)
    linear = "" if task_head is None else task_head.linear
    outputs = stored["task_head.weight"][0] if linear else 0
    table = parameter_table(model, family.prefix, task_head=linear, outputs=outputs)
    check_against_table(source, table, "a Hugging Face class")
    tokenizer = read_checkpoint_tokenizer(found, source.tokenizer_type)
    tokens = [] if tokenizer is None else tokenizer.tokens
    notices = [] if tokenizer else [f"{found} holds no vocabulary; AutoTokenizer will not load the folder"]
    lacking = [head.rstrip(".") for head in HEADS if not any(name.startswith(head) for name in stored)]
    head = "Model" if "lm_head" in lacking else "ForMaskedLM" if lacking else "ForPreTraining"
    if task_head is not None:
        head = task_head.ending
    elif lacking:
        notices.append(f"the checkpoint has no {', '.join(lacking)}: exported as {family.classes}{head}")
    task = None if task_head is None else config["task"]
    described = hub_config(model, family, head, tokens=tokens, labels=labels, task=task)
    with new_folder(output, overwrite=overwrite) as folder:
        _write_weights(folder, source, {name: table[name] for name in sorted(stored)}, max_file_bytes)
        write_json(folder / "config.json", described)
        if tokenizer is not None:
            notices += write_hub_tokenizer(tokenizer, folder, model.max_position_embeddings)
        name, class_name = output.absolute().name, f"{family.classes}{head}"
        auto_class = "AutoModel" if task_head is None else f"AutoModel{head}"
        card = model_card(name, class_name, auto_class, config, read_train_state(found), family.model_type)
        with durable_file(folder / "README.md") as file:
            file.write(card.encode())
        if check is not None:
            check(model, {name: source.read(name) for name in stored}, folder)
    return tuple(notices)


def from_huggingface(
    folder: Path, save: Path, *, extend_vocab: Path | None = None, check: Check | None = None
) -> tuple[str, ...]:
    """Write a Hugging Face folder as checkpoint 0 in the folder `save`, without optimizer. Returns notices.

    extend_vocab: a file of tokens to add (`extend_vocabulary`); `check` sees the model without them.
    Raises `UserError` if the folder is damaged or of another architecture, or `save` holds a checkpoint already.
    """
    check_empty(save)
    hub = read_huggingface(folder)
    if check is not None:
        check(hub.model, hub.parameters, folder)
    model, parameters, tokenizer, notices = hub.model, hub.parameters, hub.tokenizer, hub.notices
    if extend_vocab is not None:
        model, parameters, tokenizer, more = extend_vocabulary(model, parameters, tokenizer, extend_vocab)
        notices += more
    save_converted(save, folder.absolute().name, model, parameters, tokenizer, hub.task)
    return notices


def read_huggingface(folder: Path) -> HubModel:
    """Read a Hugging Face folder, with the head of a task where it has one.

    Missing heads, and weights that have no place here, are left out and noted.

    Raises `UserError` if files are missing or damaged, or the model is not one of the three above.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    config = read_json(folder / "config.json")
    weights = open_weights(folder)
    prefix = _prefix(folder, weights)
    model, notices = model_config(folder / "config.json", config, weights.shapes, prefix)
    task = description_of_folder(config, weights.shapes, positions=model.max_position_embeddings)
    linear = "" if task is None else TASK_HEADS[task["head"]].linear
    outputs = weights.shapes[f"{linear}.weight"][0] if linear else 0
    table = parameter_table(model, prefix, task_head=linear, outputs=outputs)
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
    if task is not None:
        labels = task.get("labels")
        notices.append(f"fine-tuned for {task['head']}" + (f", {len(labels)} labels" if labels else ""))
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
        name: merge([weights.read(their).float() for their in theirs], model.num_attention_heads)
        for name, (_, theirs) in kept.items()
    }
    model = dataclasses.replace(model, bert_no_binary_head={"pooler.", "binary_head."} <= set(dropped))
    return HubModel(model=model, parameters=parameters, tokenizer=tokenizer, task=task, notices=(*notices, *more))


_DECODER = "cls.predictions.decoder"
_BUFFERS = ("position_ids", "token_type_ids", f"{_DECODER}.weight", f"{_DECODER}.bias")


def _write_weights(folder: Path, source: Source, table: Table, max_file_bytes: int | None) -> None:
    """model.safetensors, or files of at most so many bytes of tensors and model.safetensors.index.json."""
    files: list[Table] = [{}]
    filled = 0
    for name, row in table.items():
        size = 4 * math.prod(row[0])
        if max_file_bytes is not None and files[-1] and filled + size > max_file_bytes:
            files.append({})
            filled = 0
        files[-1][name] = row
        filled += size
    if len(files) == 1:
        write_hashed(folder / "model.safetensors", _weights(source, table))
        return
    placed: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_hashed(folder / file, _weights(source, part))
        placed |= {their: file for _, theirs in part.values() for their in theirs}
    total = sum(4 * math.prod(shape) for shape, _ in table.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed})


def _weights(source: Source, table: Table) -> Iterator[torch.Tensor]:
    """A safetensors file, header and tensors one by one under their Hugging Face names, fp32, as bytes."""
    shapes = {
        their: ((shape[0] // len(theirs), *shape[1:]), torch.float32)
        for shape, theirs in table.values()
        for their in theirs
    }
    yield torch.frombuffer(bytearray(safetensors_header(shapes, {"format": "pt"})), dtype=torch.uint8)
    for ours, (_, theirs) in table.items():
        for part in split(source.read(ours), source.model.num_attention_heads, len(theirs)):
            yield part.contiguous().reshape(-1).view(torch.uint8)


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
