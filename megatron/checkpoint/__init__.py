"""Checkpoints: save, load, and conversion from and to Hugging Face folders."""

from __future__ import annotations

from megatron.checkpoint.huggingface import from_huggingface, to_huggingface
from megatron.checkpoint.store import (
    check_writable,
    find_checkpoint,
    json_bytes,
    load_tensors,
    read_config,
    read_train_state,
    save_checkpoint,
)

__all__ = [
    "check_writable",
    "find_checkpoint",
    "from_huggingface",
    "json_bytes",
    "load_tensors",
    "read_config",
    "read_train_state",
    "save_checkpoint",
    "to_huggingface",
]
