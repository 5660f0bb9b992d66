"""What a checkpoint holds, for readers: one of this engine, a Hugging Face folder, or one of Megatron-LM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.files import MANIFEST, read_json, read_manifest, verify_content
from megatron.checkpoint.hub_weights import open_weights
from megatron.checkpoint.huggingface import read_huggingface
from megatron.checkpoint.megatron_lm_read import is_megatron_lm, read_megatron_lm
from megatron.checkpoint.shards import Kind, Stored, read_index, read_whole
from megatron.checkpoint.store import CONFIG, TRACKER, TRAIN_STATE
from megatron.config import to_dict
from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor. dtype: as safetensors writes it; parts: in how many blocks it lies; read: its values, on the CPU."""

    shape: tuple[int, ...]
    dtype: str
    parts: int
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a checkpoint.

    kind: in words. facts: what its reader should know, in order. model: its shape, as the files describe it. tensors:
    by name. problems: what is damaged. common: model and weights in the terms of this engine, to compare unlike kinds.
    """

    path: Path
    kind: str
    facts: dict[str, str]
    model: dict[str, Any]
    tensors: dict[str, Entry]
    problems: tuple[str, ...] = ()
    common: Callable[[], tuple[dict[str, Any], dict[str, Entry]]] = field(repr=False)


def read_contents(path: Path, *, verify: bool = True) -> Contents:
    """The contents of a checkpoint, or of the newest in a folder of them.

    verify: read all files and compare them with their checksums, where there are any. Raises `UserError` if there is
    no checkpoint, or it cannot be read at all.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a checkpoint, a folder of them, or a Hugging Face folder")
    if is_megatron_lm(path):
        return _of_megatron_lm(path)
    found = _newest(path)
    if found is not None:
        return _of_this_engine(found, verify=verify)
    if (path / CONFIG).is_file():
        return _of_huggingface(path)
    raise UserError(f"{path} holds no checkpoint: neither iter_XXXXXXX nor mp_rank_XX nor {CONFIG} with weights")


def _newest(path: Path) -> Path | None:
    if (path / MANIFEST).is_file() or path.absolute().name.startswith("iter_"):
        return path
    try:
        number = int((path / TRACKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        folders = [folder for folder in path.glob("iter_*") if folder.is_dir()]
        return max(folders, key=lambda folder: (len(folder.name), folder.name), default=None)
    return path / f"iter_{number:07d}"


def _of_this_engine(path: Path, *, verify: bool) -> Contents:
    problems: list[str] = []

    def attempt(read: Callable[..., Any], *arguments: Any, default: Any) -> Any:
        try:
            return read(*arguments)
        except UserError as error:
            problems.append(str(error))
            return default

    files = attempt(read_manifest, path, default={})
    for name in sorted(files) if verify else ():
        attempt(verify_content, path / name, default=None)
    if not files and problems:  # without a manifest nothing in the folder is trusted
        return _contents(path, {}, {}, {}, problems)
    config = attempt(read_json, path / CONFIG, default={})
    state = attempt(read_json, path / TRAIN_STATE, default={})
    tensors: dict[str, Entry] = {}
    kinds: tuple[Kind, Kind] = ("model", "optimizer")
    for kind in kinds:
        index = attempt(read_index, path, kind, default={})
        tensors |= {name: _entry(path, name, stored) for name, stored in index.items()}
    weights = [name for name in files if name.endswith(".safetensors")]
    counts = {kind: sum(name.startswith(kind) for name in weights) for kind in kinds}
    size = sum(entry["bytes"] for entry in files.values())
    facts = {
        "position": f"step {state.get('step')}, {state.get('consumed_samples')} samples",
        "converted from": str(state.get("converted_from", "")),
        "saved by": _layout(config.get("parallel"), weights),
        "files": f"{counts['model']} of weights, {counts['optimizer']} of the optimizer, {len(files)} in all",
        "size": f"{size / 2**20:,.1f} MiB",
        "checksums": "not read" if not verify else "hold" if not problems else "do not hold",
    }
    model = config.get("model")
    return _contents(path, facts, model if isinstance(model, dict) else {}, tensors, problems)


def _contents(
    path: Path, facts: dict[str, str], model: dict[str, Any], tensors: dict[str, Entry], problems: list[str]
) -> Contents:
    weights = {name: entry for name, entry in tensors.items() if not name.startswith(("exp_avg.", "exp_avg_sq."))}
    return Contents(
        path=path,
        kind="a checkpoint of this engine",
        facts=facts,
        model=model,
        tensors=tensors,
        problems=tuple(problems),
        common=lambda: (model, weights),
    )


def _layout(parallel: Any, weights: list[str]) -> str:
    """The layout of processes that saved, as far as configuration and files tell."""
    ranks = len({name.split("-")[1].split(".")[0] for name in weights if "-" in name})
    if not ranks:
        return "an earlier version, whole tensors in one file"
    if not isinstance(parallel, dict):
        return f"{ranks} process" + ("es" if ranks > 1 else "")
    words = {"tensor_model_parallel_size": "tensor", "pipeline_model_parallel_size": "pipeline"}
    sizes = ", ".join(f"{word} {parallel.get(name, 1)}" for name, word in words.items())
    zero = ", ZeRO-1" if parallel.get("use_distributed_optimizer") else ""
    return f"{ranks} process{'es' if ranks > 1 else ''} that held parts (parallel: {sizes}{zero})"


def _entry(path: Path, name: str, stored: Stored) -> Entry:
    read = partial(read_whole, path, {name: stored}, name)
    return Entry(shape=stored.shape, dtype=stored.dtype, parts=len(stored.blocks), read=read)


def _of_huggingface(path: Path) -> Contents:
    config, weights = read_json(path / CONFIG), open_weights(path)
    tensors = {
        name: Entry(shape=shape, dtype=weights.dtypes[name], parts=1, read=partial(weights.read, name))
        for name, shape in sorted(weights.shapes.items())
    }

    def common() -> tuple[dict[str, Any], dict[str, Entry]]:
        hub = read_huggingface(path)
        return to_dict(hub.model), _in_memory(hub.parameters)

    classes = config.get("architectures")
    facts = {
        "class": ", ".join(map(str, classes)) if isinstance(classes, list) else str(config.get("model_type")),
        "files": f"{len(weights.files)} of weights ({weights.files[0].name}{', ...' * (len(weights.files) > 1)})",
        "size": f"{sum(file.stat().st_size for file in weights.files) / 2**20:,.1f} MiB",
        "checksums": "none in this format",
    }
    return Contents(path=path, kind="a Hugging Face folder", facts=facts, model=config, tensors=tensors, common=common)


def _of_megatron_lm(path: Path) -> Contents:
    found = read_megatron_lm(path)
    saved, model, tensors = found.saved, to_dict(found.model), _in_memory(found.parameters)
    dtype = str(saved.options.get("params_dtype", "unknown")).removeprefix("torch.")
    facts = {
        "checkpoint": saved.folder.name,
        "position": f"iteration {saved.iteration}, {saved.option('consumed_train_samples', int, 0)} samples",
        "saved by": f"tensor {saved.tensor_parallel}, pipeline {saved.stages}: {len(saved.files)} files",
        "version": f"checkpoint version {saved.version}, trained in {dtype}",
        "checksums": "none in this format",
        "notes": "; ".join(found.notices),
    }
    return Contents(
        path=path,
        kind="a checkpoint of Megatron-LM",
        facts=facts,
        model=model,
        tensors=tensors,
        common=lambda: (model, tensors),
    )


def _in_memory(parameters: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    return {
        name: Entry(shape=tuple(tensor.shape), dtype="F32", parts=1, read=tensor.detach)
        for name, tensor in sorted(parameters.items())
    }
