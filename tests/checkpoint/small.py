"""A small checkpoint, for tests."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.store import json_bytes, save_checkpoint
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece, whole_piece

SINGLE = ParallelContext.single()


def pieces(tensors: dict[str, torch.Tensor]) -> list[Piece]:
    return [whole_piece(name, tensor) for name, tensor in tensors.items()]


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "word": torch.randn(7, 4, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "scale": torch.randn((), generator=generator),
    }


def save(folder: Path, iteration: int, context: ParallelContext = SINGLE, **more: Any) -> Path:
    files = {
        "config.json": json_bytes({"model": {"hidden_size": 4}}),
        "train_state.json": json_bytes({"step": iteration, "loss": 0.1 + 0.2}),
    }
    arguments: dict[str, Any] = {
        "model": pieces(weights(iteration)) if context.is_main else [],
        "optimizer": pieces({"word.exp_avg": weights(iteration)["word"] * 2}) if context.is_main else [],
        "files": files | more.pop("files", {}),
        "context": context,
    }
    return save_checkpoint(folder, iteration, **{**arguments, **more})


def no_space(path: Path) -> Any:
    """Stands for a function that opens a file, on a disk that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
