"""How many layers each part of the model gets. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def split_layers(num_layers: int, parts: int, *, first_extra: float, last_extra: float) -> tuple[int, ...]:
    """Layers of each part, in order: equal where `parts` divides them, otherwise with the least maximal cost.

    first_extra, last_extra: cost of what the first part (embedding) and the last (head) carry besides, in layers.
    Layers are dealt one by one to the part that costs least, of equal ones the last, as early stages hold more
    activations.
    Raises `ValueError` if there are fewer layers than parts.
    """
    if not 1 <= parts <= num_layers:
        raise ValueError(f"{num_layers} layers cannot be divided into {parts} parts of at least one layer")
    if num_layers % parts == 0:
        return (num_layers // parts,) * parts
    layers = [1] * parts
    extra = [first_extra, *[0.0] * (parts - 2), last_extra]
    for _ in range(num_layers - parts):
        layers[min(range(parts), key=lambda part: (layers[part] + extra[part], -part))] += 1
    return tuple(layers)


def layer_ranges(split: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(first layer, layer after the last) of each part, counted over the whole model."""
    stops = list(accumulate(split))
    return tuple(zip([0, *stops[:-1]], stops, strict=True))
