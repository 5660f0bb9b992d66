"""What all conversions share: a checkpoint opened to convert, and a converted model written as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron import __version__
from megatron.checkpoint.hub_names import Table
from megatron.checkpoint.hub_tokenizer import TokenizerFile
from megatron.checkpoint.shards import Stored, read_index, read_whole
from megatron.checkpoint.store import (
    CONFIG,
    TRAIN_STATE,
    find_checkpoint,
    json_bytes,
    read_config,
    save_checkpoint,
)
from megatron.config import ModelConfig, model_from_dict, to_dict
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import whole_piece

HEADS = ("lm_head.", "pooler.", "binary_head.")
"""Beginnings of names that a model may lack; training then initialises them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint to convert. config: all of its config.json; index: where its weights are, by global name."""

    path: Path
    config: dict[str, Any]
    model: ModelConfig
    index: Mapping[str, Stored]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights, by global name."""
        return {name: stored.shape for name, stored in self.index.items()}

    def read(self, name: str) -> torch.Tensor:
        """A weight, whole, in fp32."""
        return read_whole(self.path, self.index, name)

    @property
    def tokenizer_type(self) -> str:
        """The kind of its tokenizer, "" if it does not say."""
        data = self.config.get("data")
        return str(data.get("tokenizer_type", "")) if isinstance(data, dict) else ""


def open_source(checkpoint: Path) -> Source:
    """The newest checkpoint of a folder, or that of the folder itself.

    Raises `UserError` if there is none, or it is damaged or not of a training run.
    """
    found = find_checkpoint(checkpoint, context=ParallelContext.single())
    if found is None:
        raise UserError(f"{checkpoint} holds no checkpoint")
    config = read_config(found)
    if not isinstance(config.get("model"), dict):
        raise UserError(f"{found / 'config.json'} has no section model; it is not the configuration of a training run")
    return Source(path=found, config=config, model=model_from_dict(config["model"]), index=read_index(found, "model"))


def check_against_table(source: Source, table: Table, target: str) -> None:
    """Raises `UserError` if the weights are not those of a table, heads aside. target: what has no place for others."""
    stored = source.shapes
    problems = [f"{name} is missing" for name in table if name not in stored and not name.startswith(HEADS)]
    problems += [f"{name} has no place in {target}" for name in stored if name not in table]
    problems += [
        f"{name} is {list(stored[name])} instead of {list(shape)}"
        for name, (shape, _) in table.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{source.path} does not hold the model of its config.json: {'; '.join(problems[:3])}{more}")


def check_empty(save: Path) -> None:
    """Raises `UserError` if a folder to convert into holds a checkpoint."""
    if find_checkpoint(save, context=ParallelContext.single()) is not None:
        raise UserError(f"{save} already holds a checkpoint; choose another folder")


def save_converted(
    save: Path,
    origin: str,
    model: ModelConfig,
    parameters: Mapping[str, torch.Tensor],
    tokenizer: TokenizerFile | None,
    task: dict[str, Any] | None = None,
) -> None:
    """Write a model as checkpoint 0 of a folder, without optimizer. origin: what it was converted from, for readers.

    task: the description of the task that it is fine-tuned for.
    """
    train_state = {
        "step": 0,
        "consumed_samples": 0,
        "converted_from": origin,
        "converted_by": f"megatron {__version__}",
    }
    config = {"model": to_dict(model), "data": {"tokenizer_type": tokenizer.kind} if tokenizer else {}}
    config |= {"task": task} if task else {}
    files = {CONFIG: json_bytes(config), TRAIN_STATE: json_bytes(train_state)}
    if tokenizer is not None:
        files[tokenizer.name] = tokenizer.content
    pieces = [whole_piece(name, tensor) for name, tensor in parameters.items()]
    save_checkpoint(save, 0, model=pieces, optimizer=[], files=files, context=ParallelContext.single())
