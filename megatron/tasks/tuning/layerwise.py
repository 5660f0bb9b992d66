"""Learning rates by depth: frozen layers, and the layer-wise decay of ELECTRA (Clark et al., arXiv 2003.10555)."""

from __future__ import annotations

from collections.abc import Callable


def rate_factors(num_layers: int, *, frozen_layers: int | None, decay: float) -> Callable[[str], float]:
    """The factor of the learning rate of a parameter, by its global name.

    1 for the heads and the pooler, `decay` for the last layer and the LayerNorm after it, decay^2 for the layer below,
    and so on down to the embeddings, decay^(num_layers + 1). frozen_layers: 0 for embeddings and the first so many
    layers; None: for nothing.
    """

    def factor(name: str) -> float:
        depth = _depth(name, num_layers)
        if frozen_layers is not None and depth <= frozen_layers:
            return 0.0
        return float(decay ** (num_layers + 1 - depth))

    return factor


def _depth(name: str, num_layers: int) -> int:
    """0 for the embeddings, 1 to `num_layers` for the layers, one more for what stands on them."""
    parts = name.split(".")
    if parts[0] == "embeddings":
        return 0
    if parts[0] == "encoder":
        return int(parts[2]) + 1 if parts[1] == "layers" else num_layers
    return num_layers + 1
