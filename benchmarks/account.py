"""What the memory of a training step is: states, what layers keep for their backward, and the largest temporary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from variants import Ours


def account(contestant: Ours) -> dict[str, Any]:
    """Bytes of a model with its optimizer and of its step, by kind. Makes two steps."""
    kept = _kept(contestant)
    largest = _LargestOfBackward()
    with largest:
        contestant.step()
    layers = {part: size for part, size in kept.items() if part.startswith("layer")}
    return {
        **_states(contestant),
        "activations, layers": sum(layers.values()),
        "activations, embeddings and heads": kept.total() - sum(layers.values()),
        "activations of one layer": max(layers.values()),
        "largest temporary": largest.size,
        "largest temporary is of": largest.operation,
    }


def _states(contestant: Ours) -> dict[str, int]:
    """Weights, gradients, masters beside 16-bit weights, and moments; a storage that has two names counts once."""
    optimizer, seen, found = contestant.optimizer, set(), {}
    for kind, tensors in {
        "weights": [bucket.weights for bucket in optimizer.flat.buckets],
        "gradients": [bucket.gradients for bucket in optimizer.flat.buckets],
        "masters": optimizer.masters,
        "moments": [*optimizer.exp_avg, *optimizer.exp_avg_sq],
    }.items():
        new = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        found[kind] = sum(size for storage, size in new.items() if storage not in seen)
        seen |= set(new)
    return found


def _kept(contestant: Ours) -> Counter[str]:
    """Bytes that autograd keeps of a forward, by the part of the model that kept them first, parameters not counted."""
    (chunk,) = contestant.run.chunks
    own = {_storage(parameter) for parameter in chunk.parameters()}
    kept: dict[int, tuple[str, torch.UntypedStorage]] = {}  # alive, so that no address is used twice
    inside = ["outside of layers"]

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept.setdefault(_storage(tensor), (inside[-1], tensor.untyped_storage()))
        return tensor.detach()  # itself, it would keep its own graph alive

    with _named_layers(chunk.encoder.layers, inside), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        contestant.step()
    sizes: Counter[str] = Counter()
    for part, storage in kept.values():
        sizes[part] += storage.nbytes()
    return sizes


@contextmanager
def _named_layers(layers: torch.nn.ModuleDict, inside: list[str]) -> Iterator[None]:
    """While a layer's forward runs, its name is the last of `inside`."""

    def leave(*_: object) -> None:
        inside.pop()

    handles = []
    for number, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(lambda *_, name=f"layer {number}": inside.append(name)))
        handles.append(layer.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LargestOfBackward(TorchDispatchMode):
    """The largest tensor that an operation of a backward makes: nothing of these is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() != -1:
            given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.nbytes > self.size and _storage(leaf) not in given:
                    self.size, self.operation = leaf.nbytes, str(func)
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
