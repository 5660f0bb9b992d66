"""What a checkpoint holds, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron.checkpoint.shards import read_index, read_whole


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of the model by global name."""
    index = read_index(checkpoint, "model")
    return {name: read_whole(checkpoint, index, name) for name in index}
