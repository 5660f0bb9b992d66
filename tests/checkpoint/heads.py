"""Fine-tuned models with random weights, one for every kind of head, for the tests of their export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint import json_bytes, save_checkpoint
from megatron.config import ModelConfig, to_dict
from megatron.model import BertForPrompts, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces
from tests.checkpoint.hub import TOKENS
from tools import convert_checkpoint

SINGLE = ParallelContext.single()
TAGS = ["O", "B-人", "I-人", "B-地", "I-地"]
CLASSES = {
    "classification": ("ForSequenceClassification", ["neutral", "entailment", "contradiction"]),
    "tagging": ("ForTokenClassification", TAGS),
    "reading": ("ForQuestionAnswering", []),
    "multiple-choice": ("ForMultipleChoice", []),
    "prompts": ("ForMaskedLM", ["bad", "good"]),
}
ARCHITECTURES = {"bert": "Bert", "megatron-bert": "MegatronBert"}


def shape(architecture: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "architecture": architecture, "num_layers": 2, "hidden_size": 24, "num_attention_heads": 3,
        "ffn_hidden_size": 40, "max_position_embeddings": 20, "vocab_size": 40, "init_method_std": 0.3,
    }
    return ModelConfig(**{**values, **changes})


def our_model(config: ModelConfig, kind: str) -> BertForTask | BertForPrompts:
    if kind == "prompts":
        model: BertForTask | BertForPrompts = BertForPrompts(config, SINGLE)
    else:
        outputs = {"reading": 2, "multiple-choice": 1}.get(kind, len(CLASSES[kind][1]))
        per_token = kind in ("tagging", "reading")
        model = BertForTask(config, SINGLE, num_outputs=outputs, per_token=per_token, dropout=0.0)
    initialize(model, 1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms too
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def fine_tuned(
    folder: Path, kind: str, architecture: str, *, task: Any = None, **changes: Any
) -> BertForTask | BertForPrompts:
    """A checkpoint of a fine-tuned model. task: its description, if it is to be wrong."""
    config = shape(architecture, **changes)
    model = our_model(config, kind)
    name = {"classification": "ocnli"}.get(kind, kind)
    described = task or {"name": name, "head": kind, "labels": CLASSES[kind][1], "seq_length": 16}
    files = {
        "config.json": json_bytes(
            {"model": to_dict(config), "data": {"tokenizer_type": "BertWordPieceCase"}, "task": described}
        ),
        "train_state.json": json_bytes({}),
        "vocab.txt": "".join(f"{token}\n" for token in TOKENS).encode(),
    }
    pieces = parameter_pieces(model.named_parameters())
    save_checkpoint(folder, 7, model=pieces, optimizer=[], files=files, context=SINGLE)
    return model


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """`convert_checkpoint.py` in this process."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()
