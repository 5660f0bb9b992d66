"""A checkpoint of Megatron-LM as one model: the files of all its ranks, whole tensors, the shape of the encoder.

    DIR/latest_checkpointed_iteration.txt         a number, or "release"
    DIR/iter_0001000/mp_rank_00/model_optim_rng.pt        tensor-parallel rank 0
                     mp_rank_00_001/model_optim_rng.pt    with pipeline stages: rank 0 of stage 1

The query-key-value order and the names depend on the version; `megatron.checkpoint.megatron_lm_names` knows them.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from megatron.checkpoint.converted import HEADS
from megatron.checkpoint.hub_names import parameter_table
from megatron.checkpoint.megatron_lm_file import named_tensors, read_torch_file
from megatron.checkpoint.megatron_lm_names import TIED_COPY, WORD_TABLE, by_head, divided_dim, name_here
from megatron.config import ModelConfig
from megatron.errors import UserError

FILE = "model_optim_rng.pt"
TRACKER = "latest_checkpointed_iteration.txt"

Activation = Literal["gelu", "gelu_new"]

# Options of Megatron-LM whose models have no form here, with the values that do.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False,),
    "normalization": ("LayerNorm",),
    "num_experts": (None,),
    "position_embedding_type": ("learned_absolute",),
    "squared_relu": (False,),
    "swiglu": (False,),
    "untie_embeddings_and_output_weights": (False,),
}

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The files of a checkpoint, read. files: (tensor-parallel rank, stage) -> content; the grid has no gaps."""

    folder: Path
    files: dict[tuple[int, int], dict[str, Any]]
    tensor_parallel: int
    stages: int
    version: float
    iteration: int
    options: Mapping[str, Any]

    def option(self, name: str, kind: type[Value], default: Value) -> Value:
        """A value of the command line that wrote it; the default if it does not say."""
        value = self.options.get(name)
        return value if isinstance(value, kind) and isinstance(value, bool) == (kind is bool) else default


@dataclass(frozen=True, kw_only=True)
class MegatronModel:
    """What a checkpoint of Megatron-LM holds, in our terms. parameters: global name -> whole fp32 tensor."""

    saved: Saved
    model: ModelConfig
    parameters: dict[str, torch.Tensor]
    notices: tuple[str, ...]


def is_megatron_lm(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint of Megatron-LM, or a folder of them."""
    return any(folder.glob(f"mp_rank_*/{FILE}")) or any(folder.glob(f"*/mp_rank_*/{FILE}"))


def read_megatron_lm(
    folder: Path, *, vocab_size: int | None = None, heads: int | None = None, activation: Activation | None = None
) -> MegatronModel:
    """Read a checkpoint of Megatron-LM's BERT, versions 0 to 3.0, classic or core names.

    folder: as given to its --save, or one checkpoint. vocab_size: tokens of the vocabulary; the rows beyond are its
    padding and are cut. heads, activation: where the file does not hold the options it was written with.
    Raises `UserError` if files are missing, damaged or refused, or the model has no form here.
    """
    saved = read_files(folder)
    notices = ["the optimizer's state is not converted"]
    heads = heads or saved.option("num_attention_heads", int, 0)
    if heads <= 0:
        raise UserError(f"{saved.folder} does not say how many heads it has; give --num-attention-heads")
    _refuse_other_models(saved)
    parts = _parts_by_name(saved, notices)
    parameters = {name: _whole(saved, name, parts[name], heads, notices) for name in sorted(parts)}
    if WORD_TABLE not in parameters:
        raise UserError(f"{saved.folder} holds no word table; it is not a BERT of Megatron-LM")
    rows = parameters[WORD_TABLE].shape[0]
    known = vocab_size or saved.option("vocab_size", int, 0)
    if known > rows:
        raise UserError(f"{saved.folder}: the word table has {rows} rows, fewer than the {known} tokens")
    if not known:
        notices.append(f"the vocabulary's size is not known: all {rows} rows are kept, padding too (see --vocab-file)")
    for name in (WORD_TABLE, "lm_head.bias"):
        if name in parameters:
            parameters[name] = parameters[name][: known or rows].clone()
    model = _shape(saved, parameters, heads, activation, notices)
    _check_shapes(saved, model, parameters)
    return MegatronModel(saved=saved, model=model, parameters=parameters, notices=tuple(notices))


def read_files(folder: Path) -> Saved:
    """Read the files of all ranks. Raises `UserError` if one is missing, damaged or refused, or they contradict."""
    found = _newest(folder)
    paths: dict[tuple[int, int], Path] = {}
    for path in sorted(found.glob("mp_rank_*")):
        match = re.fullmatch(r"mp_rank_(\d{2,5})(?:_(\d{3,5}))?", path.name)
        if match is None:
            raise UserError(f"{path} is of a layout that cannot be converted; only tensor and pipeline parallelism can")
        if (path / FILE).is_file():
            paths[int(match[1]), int(match[2] or 0)] = path / FILE
    if not paths:
        raise UserError(f"{found} holds no mp_rank_XX/{FILE}; only the format torch (--ckpt-format torch) is converted")
    files = {place: read_torch_file(path) for place, path in paths.items()}
    first = files[min(files)]
    options = vars(first["args"]) if isinstance(first.get("args"), argparse.Namespace) else {}
    sizes = [1 + max(place[axis] for place in paths) for axis in (0, 1)]
    flags = (("tensor_model_parallel_size", "model_parallel_size"), ("pipeline_model_parallel_size",))
    for axis, names in enumerate(flags):
        given = next((options[name] for name in names if isinstance(options.get(name), int)), sizes[axis])
        sizes[axis] = max(sizes[axis], given)
    for place in ((t, p) for p in range(sizes[1]) for t in range(sizes[0])):
        if place not in paths:
            raise UserError(f"{found} lacks the file of tensor-parallel rank {place[0]} of pipeline stage {place[1]}")
    version = first.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or not 0 <= version < 4:
        raise UserError(f"{found} has the checkpoint_version {version!r}; only 0, 1.0, 2.0 and 3.0 are known")
    if any(content.get("checkpoint_version", 0) != version for content in files.values()):
        raise UserError(f"{found}: its files have different checkpoint_versions; they are of different checkpoints")
    iteration = first.get("iteration", first.get("total_iters", 0))
    return Saved(
        folder=found,
        files=files,
        tensor_parallel=sizes[0],
        stages=sizes[1],
        version=float(version),
        iteration=iteration if isinstance(iteration, int) else 0,
        options=options,
    )


def _newest(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if any(folder.glob("mp_rank_*")):
        return folder
    try:
        text = (folder / TRACKER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise UserError(f"{folder} holds neither mp_rank_XX nor a readable {TRACKER}") from None
    if text != "release" and not re.fullmatch("[0-9]{1,12}", text):
        raise UserError(f"{folder / TRACKER} holds {text[:40]!r} instead of a number or release")
    found = folder / (text if text == "release" else f"iter_{int(text):07d}")
    if not found.is_dir():
        raise UserError(f"{found} does not exist; {folder / TRACKER} names it")
    return found


def _refuse_other_models(saved: Saved) -> None:
    for name, values in _MUST_BE.items():
        value = saved.options.get(name)
        if isinstance(value, bool | int | str) and value not in values:
            raise UserError(f"{saved.folder} was trained with {name} = {value}; such a model has no form here")


def _parts_by_name(saved: Saved, notices: list[str]) -> dict[str, list[torch.Tensor]]:
    """Global name -> the tensors of the tensor-parallel ranks, in order.

    With interleaved stages a file holds model0, model1, ...: the layers count through the first chunks of all stages,
    then the second ones.
    """
    chunks = sorted(
        (key for key in saved.files[0, 0] if re.fullmatch(r"model\d*", str(key))), key=lambda key: (len(key), key)
    )
    parts: dict[str, list[torch.Tensor]] = {}
    unknown: set[str] = set()
    first_layer = 0
    for chunk in chunks:
        for stage in range(saved.stages):
            counts = set()
            for rank in range(saved.tensor_parallel):
                content = saved.files[rank, stage].get(chunk)
                if not isinstance(content, dict):
                    raise UserError(f"{saved.folder}: rank {rank} of stage {stage} holds no {chunk}")
                names = _names_here(named_tensors(content, saved.folder), first_layer, unknown)
                for name, tensor in names.items():
                    parts.setdefault(name, []).append(tensor)
                numbers = [re.match(r"encoder\.layers\.(\d+)\.", name) for name in names]
                counts.add(max((int(match[1]) + 1 - first_layer for match in numbers if match), default=0))
            first_layer += max(counts)
    uneven = sorted(name for name, tensors in parts.items() if len(tensors) != saved.tensor_parallel)
    if uneven:
        raise UserError(f"{saved.folder}: {uneven[0]} is there {len(parts[uneven[0]])} times, not once for each rank")
    if unknown:
        some = ", ".join(sorted(unknown)[:4])
        notices.append(f"not converted: {some}" + (", ..." if len(unknown) > 4 else ""))
    return parts


def _names_here(tensors: dict[str, torch.Tensor], first_layer: int, unknown: set[str]) -> dict[str, torch.Tensor]:
    found = {}
    for theirs, tensor in tensors.items():
        name = name_here(theirs, first_layer)
        if name is not None:
            found[name] = tensor
        elif theirs not in TIED_COPY.values() and not theirs.endswith("_extra_state"):
            unknown.add(theirs)
    return found


def _whole(saved: Saved, name: str, parts: list[torch.Tensor], heads: int, notices: list[str]) -> torch.Tensor:
    """A global tensor, fp32, from those of the ranks."""
    dim = divided_dim(name)
    if dim is None:
        if not all(torch.equal(parts[0], part) for part in parts[1:]):
            notices.append(f"{name} differs between tensor-parallel ranks, which should hold the same; rank 0 counts")
        return parts[0].float().clone()
    try:
        if ".query_key_value." in name:
            if heads % len(parts):
                raise RuntimeError(f"{heads} heads on {len(parts)} ranks")
            parts = [by_head(part, saved.version, heads // len(parts)) for part in parts]
        return torch.cat(parts, dim).float()
    except (RuntimeError, IndexError) as error:
        raise UserError(f"{saved.folder}: the parts of {name} do not fit together: {error}") from None


def _shape(
    saved: Saved, parameters: dict[str, torch.Tensor], heads: int, activation: Activation | None, notices: list[str]
) -> ModelConfig:
    """The configuration; fills in token types and leaves out heads that are not whole."""
    hidden = parameters[WORD_TABLE].shape[-1]
    types = "embeddings.token_type_embeddings.weight"
    if types not in parameters:
        parameters[types] = torch.zeros(2, hidden)
        notices.append("the model has no token types: theirs are zeros")
    numbers = [re.match(r"encoder\.layers\.(\d+)\.", name) for name in parameters]

    def rows(name: str) -> int:
        return parameters[name].shape[0] if name in parameters else 0

    model = ModelConfig(
        num_layers=1 + max((int(match[1]) for match in numbers if match), default=-1),
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_hidden_size=rows("encoder.layers.0.mlp.dense_h_to_4h.weight"),
        max_position_embeddings=rows("embeddings.position_embeddings.weight"),
        vocab_size=rows(WORD_TABLE),
        type_vocab_size=rows(types),
        activation=activation or _activation(saved, notices),
        layernorm_epsilon=saved.option("norm_epsilon", float, saved.option("layernorm_epsilon", float, 1e-5)),
        hidden_dropout=saved.option("hidden_dropout", float, 0.1),
        attention_dropout=saved.option("attention_dropout", float, 0.1),
        init_method_std=saved.option("init_method_std", float, 0.02),
    )
    layers = saved.option("num_layers", int, model.num_layers)
    if layers != model.num_layers:
        raise UserError(f"{saved.folder} was written with {layers} layers, but its files hold {model.num_layers}")
    table = parameter_table(model, "")
    dropped = [head for head in HEADS if any(name.startswith(head) and name not in parameters for name in table)]
    for name in [name for name in parameters if name.startswith(tuple(dropped))]:
        del parameters[name]
    no_binary_head = {"pooler.", "binary_head."} <= set(dropped)
    if dropped and not (no_binary_head and len(dropped) == 2):
        names = ", ".join(head.rstrip(".") for head in dropped)
        notices.append(f"left out, training will initialise it: {names}")
    model = dataclasses.replace(model, bert_no_binary_head=no_binary_head)
    problems = model.problems()
    if problems:
        raise UserError(f"{saved.folder}: {'; '.join(problems)}")
    return model


def _activation(saved: Saved, notices: list[str]) -> Activation:
    """gelu_new (tanh) or gelu (erf), as the options that it was trained with computed the MLP.

    Megatron-LM's fused bias and GELU is the tanh approximation in the MLP; the language-model head stays with erf.
    """
    if saved.option("openai_gelu", bool, False):
        return "gelu_new"
    if not saved.options:
        notices.append("the file does not say which GELU it was trained with: gelu_new is assumed (see --activation)")
    elif not saved.option("bias_gelu_fusion", bool, True):
        return "gelu"
    else:
        notices.append(
            "trained with the fused GELU: tanh in the layers, erf in the language-model head; here it is tanh in both "
            "(gelu_new), which moves the head's values by at most 5e-4"
        )
    return "gelu_new"


def _check_shapes(saved: Saved, model: ModelConfig, parameters: dict[str, torch.Tensor]) -> None:
    table = parameter_table(model, "")
    missing = [name for name in table if name not in parameters and not name.startswith(HEADS)]
    if missing:
        raise UserError(f"{saved.folder} lacks {len(missing)} tensors of the encoder, first {missing[0]}")
    for name, tensor in parameters.items():
        shape = table[name][0] if name in table else None
        if shape != tuple(tensor.shape):
            expected = "no such tensor" if shape is None else str(list(shape))
            raise UserError(
                f"{saved.folder}: {name} is {list(tensor.shape)}, but its other tensors call for {expected}"
            )
