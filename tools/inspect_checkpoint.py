"""What is in a checkpoint: tensors, position, the layout it was saved in, whether it is whole; or how two differ.

    python tools/inspect_checkpoint.py PATH
    python tools/inspect_checkpoint.py PATH OTHER

A path is a checkpoint, a folder of them (the newest is taken), a Hugging Face folder or a checkpoint of Megatron-LM.
Unlike kinds are compared in the terms of this engine. Exit code 1 if a checkpoint is damaged or the two differ.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from megatron.arguments import parse
from megatron.checkpoint.contents import Contents, Entry, read_contents
from megatron.errors import main_guard

_LISTED = 10  # of the differing tensors

# Values that do not change what a model is: of files, and of how its vocabulary came to its size.
_IGNORED = {
    "_name_or_path",
    "dtype",
    "make_vocab_size_divisible_by",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True, kw_only=True)
class InspectCheckpointConfig:
    """Print what a checkpoint holds, or how two differ (exit code 1 if they do)."""

    path: tyro.conf.Positional[str]
    """Checkpoint, folder of checkpoints, Hugging Face folder, or checkpoint of Megatron-LM."""
    other: tyro.conf.Positional[str | None] = None
    """Another one to compare it with."""
    norms: bool = False
    """Read every tensor and print its norm (L2) and its largest element."""
    no_verify: bool = False
    """Do not read the files to compare them with their checksums."""
    tolerance: float = 0.0
    """Largest difference of two elements that counts as equal."""


def describe(contents: Contents, *, norms: bool) -> Iterator[str]:
    """The lines that describe a checkpoint."""
    yield f"{contents.path}: {contents.kind}"
    elements = sum(math.prod(entry.shape) for entry in contents.tensors.values())
    facts = contents.facts | {"tensors": f"{len(contents.tensors)} with {elements:,} elements"}
    facts |= {"model": ", ".join(f"{name} {value}" for name, value in contents.model.items() if _is_plain(value))}
    for name, fact in facts.items():
        if fact:
            yield f"  {name:<15}{fact}"
    width = max(map(len, contents.tensors), default=0)
    for name, entry in contents.tensors.items():
        parts = f" in {entry.parts} parts" if entry.parts > 1 else ""
        line = f"  {name:<{width}}  {entry.dtype:<4} {list(entry.shape)}{parts}"
        if norms:
            values = entry.read().float()
            line += f"  norm {values.norm().item():.6g}  max {values.abs().max().item() if values.numel() else 0:.6g}"
        yield line
    for problem in contents.problems:
        yield f"DAMAGED: {problem}"


def differences(a: Contents, b: Contents, tolerance: float) -> Iterator[str]:
    """A line for each difference in shape and tensors, the largest differences of values first; none if equal."""
    (model_a, tensors_a), (model_b, tensors_b) = (
        ((a.model, a.tensors), (b.model, b.tensors)) if a.kind == b.kind else (a.common(), b.common())
    )
    for name in sorted((model_a.keys() & model_b.keys()) - _IGNORED):  # what one leaves out has its default
        if model_a[name] != model_b[name]:
            yield f"model: {name} is {model_a[name]!r}, and {model_b[name]!r}"
    for mine, others, where in ((tensors_a, tensors_b, a.path), (tensors_b, tensors_a, b.path)):
        only = [name for name in mine if name not in others]
        if only:
            yield f"only in {where}: {_first(only)}"
    differing = []
    for name in tensors_a.keys() & tensors_b.keys():
        one, other = tensors_a[name], tensors_b[name]
        if one.shape != other.shape:
            yield f"{name}: shape {list(one.shape)}, and {list(other.shape)}"
            continue
        if one.dtype != other.dtype:
            yield f"{name}: dtype {one.dtype}, and {other.dtype}"
        largest, count = _largest_difference(one, other)
        if not largest <= tolerance:
            differing.append((largest, name, f"{count:,} of {math.prod(one.shape):,} elements"))
    differing.sort(key=lambda entry: (-entry[0] if entry[0] == entry[0] else -math.inf, entry[1]))
    for largest, name, share in differing[:_LISTED]:
        yield f"{name}: differs by up to {largest:.6g} in {share}"
    if len(differing) > _LISTED:
        yield f"... and {len(differing) - _LISTED} more tensors"


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more tensors" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _largest_difference(one: Entry, other: Entry) -> tuple[float, int]:
    """The largest absolute difference, NaN where only one of two elements is, and the number of unequal elements."""
    a, b = one.read().double(), other.read().double()
    unequal = (a != b) & ~(a.isnan() & b.isnan())
    count = int(unequal.sum())
    return ((a - b)[unequal].abs().max().item() if count else 0.0), count


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value is not False


def _print(lines: list[str]) -> None:
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # read by `head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Parse, read, print."""
    given = parse(
        InspectCheckpointConfig,
        prog="inspect_checkpoint.py",
        description="What is in a checkpoint, whether it is whole, or how two differ.",
    )
    paths = [Path(path) for path in (given.path, given.other) if path is not None]
    contents = [read_contents(path, verify=not given.no_verify) for path in paths]
    if len(contents) == 1:
        lines = list(describe(contents[0], norms=given.norms))
        found = list(contents[0].problems)
    else:
        found = [f"DAMAGED: {problem}" for part in contents for problem in part.problems]
        found = found or list(differences(contents[0], contents[1], given.tolerance))
        lines = found or [f"{contents[0].path} and {contents[1].path} hold the same model"]
    _print(lines)
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main_guard(main)
