"""The checkpoint that fine-tuning starts from: shape, vocabulary and weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from megatron.checkpoint import find_checkpoint, from_huggingface, load_tensors, read_config
from megatron.checkpoint.files import MANIFEST
from megatron.checkpoint.store import TRACKER
from megatron.config import ModelConfig, model_from_dict
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import parameter_pieces

# Names of the vocabulary in a checkpoint: WordPiece, SentencePiece.
VOCABULARY, SENTENCEPIECE = "vocab.txt", "tokenizer.model"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A checkpoint. task: its description of the task it was fine-tuned on, unchecked; None for a pre-trained one."""

    folder: Path
    model: ModelConfig
    tokenizer: Tokenizer
    task: Any

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The vocabulary, for the checkpoints that follow."""
        names = [name for name in (VOCABULARY, SENTENCEPIECE) if (self.folder / name).is_file()]
        return {name: (self.folder / name).read_bytes() for name in names}


def open_pretrained(path: Path, workspace: Path, context: ParallelContext) -> Pretrained:
    """Open a checkpoint folder, or a Hugging Face folder, which is converted into `workspace` first.

    Raises `UserError` on all ranks if it is missing, damaged or without a vocabulary.
    """
    with context.together():
        if context.is_main and _is_huggingface(path):
            shutil.rmtree(workspace, ignore_errors=True)
            for notice in from_huggingface(path, workspace):
                print(notice, flush=True)
    converted = context.world.broadcast_object(_is_huggingface(path))
    folder = find_checkpoint(workspace if converted else path, context=context)
    if folder is None:
        raise UserError(f"{path} holds neither a checkpoint nor a Hugging Face model")
    with context.together():
        config = read_config(folder)
        if not isinstance(config.get("model"), dict) or not isinstance(config.get("data"), dict):
            raise UserError(f"{folder / 'config.json'} lacks the sections model and data")
        model = model_from_dict(config["model"])
        kind = str(config["data"].get("tokenizer_type"))
        names = ("vocab_file", VOCABULARY), ("model_file", SENTENCEPIECE)
        files = {argument: str(folder / name) for argument, name in names if (folder / name).is_file()}
        if not files:
            raise UserError(f"{path} holds no vocabulary ({VOCABULARY} or {SENTENCEPIECE})")
        tokenizer = load_tokenizer(kind, **files)
        if tokenizer.vocab_size > model.vocab_size:
            raise UserError(
                f"{folder}: the vocabulary has {tokenizer.vocab_size} tokens, the model only {model.vocab_size} rows"
            )
    return Pretrained(folder=folder, model=model, tokenizer=tokenizer, task=config.get("task"))


def load_weights(
    chunks: Sequence[nn.Module], pretrained: Pretrained, *, fine_tuned: bool, context: ParallelContext
) -> tuple[str, ...]:
    """Copy the checkpoint's weights into the parts of a task model, before its optimizer exists.

    fine_tuned: the head of the task must be there; otherwise the head (and a pooler that the checkpoint lacks) keep
    their initial values. Returns the names that were not in the checkpoint. Raises `UserError` on all ranks if the
    head of masked words is wanted and not there.
    """
    named = [item for chunk in chunks for item in chunk.named_parameters()]
    new = [] if fine_tuned else [name for name, _ in named if name.startswith("task_head.")]
    named = [(name, parameter) for name, parameter in named if name not in new]
    lacking = load_tensors(
        pretrained.folder,
        "model",
        parameter_pieces(named),
        context=context,
        may_lack=() if fine_tuned else ("pooler.", "lm_head."),
        may_hold=("lm_head.", "binary_head.", "task_head.", "pooler."),
    )
    if any(name.startswith("lm_head.") for name in lacking):
        raise UserError(
            f"{pretrained.folder} has no masked-language-model head, which fills the blanks of patterns; "
            f"for --prompt and --zero-shot give a pre-trained checkpoint that has one"
        )
    return (*lacking, *new)


def _is_huggingface(path: Path) -> bool:
    """Whether the folder is in Hugging Face's form: a save folder of ours may have a config.json, too."""
    ours = any((path / name).exists() for name in (MANIFEST, TRACKER)) or any(path.glob("iter_*"))
    return (path / "config.json").is_file() and not ours
