"""Convert checkpoints to Hugging Face folders or to Megatron-LM's checkpoints, and back.

    python tools/convert_checkpoint.py to-hf         --load CHECKPOINT --output DIR [--onnx FILE]
    python tools/convert_checkpoint.py from-hf       --input DIR --save CHECKPOINT
    python tools/convert_checkpoint.py to-megatron   --load CHECKPOINT --output DIR
    python tools/convert_checkpoint.py from-megatron --input DIR --save CHECKPOINT

Hugging Face: nothing appears before the outputs of both sides agree on random input (checked where transformers is
installed). Megatron-LM: weights only; its files are read without running what they name.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron.arguments import parse
from megatron.checkpoint.files import read_json
from megatron.checkpoint.hub_config import family_of
from megatron.checkpoint.hub_heads import TASK_HEADS, TaskHead
from megatron.checkpoint.huggingface import from_huggingface, to_huggingface
from megatron.checkpoint.megatron_lm import from_megatron_lm, to_megatron_lm
from megatron.checkpoint.megatron_lm_names import Naming
from megatron.checkpoint.megatron_lm_read import Activation
from megatron.config import ModelConfig
from megatron.errors import UserError, main_guard
from megatron.model import BertForPreTraining, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.tasks.onnx_export import check_onnx_packages, write_onnx

PROG = "convert_checkpoint.py"
TOLERANCE = 1e-4
"""Largest difference of two outputs in fp32, absolute, or relative to the largest output where that exceeds 1."""


@dataclass(frozen=True, kw_only=True)
class ToHuggingFaceConfig:
    """A checkpoint as a folder that AutoModel and AutoTokenizer load."""

    load: str
    """Folder of checkpoints (the newest is taken) or of one checkpoint."""
    output: str
    """Folder to write."""
    overwrite: bool = False
    """Replace an earlier export in --output."""
    max_shard_size: float | None = None
    """Divide the weights into files of at most this many GB, with an index [default: one file]."""
    onnx: str | None = None
    """Write the model as this ONNX file, too, with the same inputs and outputs; checked with onnxruntime."""


@dataclass(frozen=True, kw_only=True)
class FromHuggingFaceConfig:
    """Weights of a Hugging Face folder as a checkpoint to --load."""

    input: str
    """Folder with config.json, model.safetensors or pytorch_model.bin, and vocab.txt or tokenizer.json."""
    save: str
    """Folder to write the checkpoint to; must not hold one."""
    extend_vocab: str | None = None
    """File of tokens to add, one a line; a new row of the word table is the mean of those of the token's pieces."""


@dataclass(frozen=True, kw_only=True)
class ToMegatronConfig:
    """A checkpoint as Megatron-LM's `release` checkpoint, version 3.0, for its BERT."""

    load: str
    """Folder of checkpoints (the newest is taken) or of one checkpoint."""
    output: str
    """Folder to write; give it to Megatron-LM's --load."""
    tensor_model_parallel_size: int = 1
    """Tensor-parallel ranks to divide it among."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages to divide it among."""
    make_vocab_size_divisible_by: int = 128
    """Pad the word table to a multiple of this for every tensor-parallel rank, as Megatron-LM will."""
    naming: Naming = "classic"
    """classic: for Megatron-LM's own BERT (until 2026); core: for that of Megatron-Core."""


@dataclass(frozen=True, kw_only=True)
class FromMegatronConfig:
    """Weights of a checkpoint of Megatron-LM's BERT (model_optim_rng.pt of all ranks) as a checkpoint to --load."""

    input: str
    """Folder given to Megatron-LM's --save, or one of its checkpoints."""
    save: str
    """Folder to write the checkpoint to; must not hold one."""
    vocab_file: str | None = None
    """Vocabulary to put beside the weights; padding rows of the word table beyond it are cut."""
    vocab_size: int | None = None
    """Tokens of the vocabulary [default: that of --vocab-file, else what the checkpoint says]."""
    num_attention_heads: int | None = None
    """Heads of a checkpoint that does not say."""
    activation: Activation | None = None
    """gelu: erf; gelu_new: tanh [default: as the checkpoint's options say]."""


DESCRIPTION = "Convert checkpoints to Hugging Face folders or to Megatron-LM's checkpoints, and back."


def main() -> None:
    """Convert in the direction that the first argument names."""
    direction, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    prog = f"{PROG} {direction}"
    if direction == "to-hf":
        to = parse(ToHuggingFaceConfig, arguments, prog=prog, description=DESCRIPTION)
        if to.max_shard_size is not None and to.max_shard_size <= 0:
            raise UserError("--max-shard-size must be positive")
        onnx = None if to.onnx is None else Path(to.onnx)
        if onnx is not None:
            check_onnx_packages()

        def check(model: ModelConfig, parameters: Mapping[str, Tensor], folder: Path) -> None:
            compare_with_transformers(model, parameters, folder)
            if onnx is not None:
                (class_name,) = read_json(folder / "config.json")["architectures"]
                difference = write_onnx(onnx, model, class_name.removeprefix(family_of(model).classes), parameters)
                print(f"{onnx}: outputs of onnxruntime equal to {difference:.1e}")

        notices = to_huggingface(
            Path(to.load),
            Path(to.output),
            overwrite=to.overwrite,
            max_file_bytes=None if to.max_shard_size is None else int(to.max_shard_size * 1e9),
            check=check,
        )
        written = to.output
    elif direction == "from-hf":
        source = parse(FromHuggingFaceConfig, arguments, prog=prog, description=DESCRIPTION)
        notices = from_huggingface(
            Path(source.input),
            Path(source.save),
            extend_vocab=None if source.extend_vocab is None else Path(source.extend_vocab),
            check=compare_with_transformers,
        )
        written = source.save
    elif direction == "to-megatron":
        there = parse(ToMegatronConfig, arguments, prog=prog, description=DESCRIPTION)
        notices = to_megatron_lm(
            Path(there.load),
            Path(there.output),
            tensor_parallel=there.tensor_model_parallel_size,
            stages=there.pipeline_model_parallel_size,
            divisible_by=there.make_vocab_size_divisible_by,
            naming=there.naming,
        )
        written = there.output
    elif direction == "from-megatron":
        theirs = parse(FromMegatronConfig, arguments, prog=prog, description=DESCRIPTION)
        notices = from_megatron_lm(
            Path(theirs.input),
            Path(theirs.save),
            vocab_file=None if theirs.vocab_file is None else Path(theirs.vocab_file),
            vocab_size=theirs.vocab_size,
            heads=theirs.num_attention_heads,
            activation=theirs.activation,
        )
        written = theirs.save
    elif direction in ("-h", "--help"):
        print(__doc__)
        return
    else:
        raise UserError("the first argument must be to-hf, from-hf, to-megatron or from-megatron; each has a --help")
    for notice in notices:
        print(f"note: {notice}")
    print(f"wrote {written}")


def compare_with_transformers(model: ModelConfig, parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Compare the outputs of our model and of the Hugging Face class on the same random input, fp32.

    Raises `UserError` if transformers cannot load the folder or an output differs by more than `TOLERANCE`.
    """
    try:
        import transformers
    except ImportError:
        print("note: transformers is not installed, so the logits of both sides were not compared")
        return
    generator = torch.Generator().manual_seed(0)
    length = min(64, model.max_position_embeddings)
    tokens = torch.randint(model.vocab_size, (2, length), generator=generator)
    token_types = torch.randint(min(2, model.type_vocab_size), (2, length), generator=generator)
    lengths = torch.tensor([length, (length + 1) // 2])  # the second sample has padding
    config = read_json(folder / "config.json")
    head = _task_head(config, parameters)
    with torch.no_grad():
        ours = _our_outputs(model, head, parameters, tokens, token_types, lengths)
        theirs = _their_outputs(model, head, parameters, folder, config, tokens, token_types, lengths)
    worst = 0.0
    for name, output in ours.items():
        difference = (output - theirs[name]).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, theirs[name].abs().max().item()):  # NaN fails too
            raise UserError(
                f"{folder.name}: {name} of both sides differ by {difference:.1e} (limit {TOLERANCE}); not converted"
            )
        worst = max(worst, difference)
    print(f"{', '.join(ours)} equal those of transformers {transformers.__version__} to {worst:.1e}")


def _task_head(config: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> TaskHead | None:
    """The head of the task of a folder with this config.json, where the weights hold one of their own."""
    if "task_head.weight" not in parameters:
        return None
    return next(head for head in TASK_HEADS.values() if config["architectures"][0].endswith(head.ending))


def _our_outputs(
    config: ModelConfig,
    head: TaskHead | None,
    parameters: Mapping[str, Tensor],
    tokens: Tensor,
    token_types: Tensor,
    lengths: Tensor,
) -> dict[str, Tensor]:
    """Output name -> values at the tokens that are not padding, or of the samples."""
    context = ParallelContext.single()
    if head is not None:
        outputs = parameters["task_head.weight"].shape[0]
        fine_tuned = BertForTask(config, context, num_outputs=outputs, per_token=head.per_token, dropout=0.0)
        _fill(fine_tuned, parameters)
        logits = fine_tuned(tokens, token_types, lengths, None)
        return {"logits": logits[_real_tokens(tokens, lengths)] if head.per_token else logits}
    config = dataclasses.replace(config, bert_no_binary_head="pooler.dense.weight" not in parameters)
    model = BertForPreTraining(config, context)
    _fill(model, parameters)
    x = model.hidden_states(tokens, token_types, lengths, None)
    real = _real_tokens(tokens, lengths)
    if "lm_head.bias" not in parameters:
        return {"hidden states": x.transpose(0, 1)[real]}
    found = {"MLM logits": model.mlm_logits(x, real.flatten().nonzero().flatten())}
    if "binary_head.weight" in parameters:
        found["SOP logits"] = model.sop_logits(x[0])
    return found


def _their_outputs(
    model: ModelConfig,
    task_head: TaskHead | None,
    parameters: Mapping[str, Tensor],
    folder: Path,
    values: Mapping[str, Any],
    tokens: Tensor,
    token_types: Tensor,
    lengths: Tensor,
) -> dict[str, Tensor]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Some folders call Bert weights roberta, so only what the folder says of Ernie counts (without task types: a Bert).
    family = "Ernie" if values.get("model_type") == "ernie" else family_of(model).classes
    values = {name: value for name, value in values.items() if name != "model_type"}
    if task_head is not None:
        head = task_head.ending
    elif "lm_head.bias" not in parameters:
        head = "Model"
    else:
        head = "ForPreTraining" if "binary_head.weight" in parameters else "ForMaskedLM"
    class_ = getattr(transformers, f"{family}{head}")
    tables = {
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "type_vocab_size": model.type_vocab_size,
    }
    try:
        config = class_.config_class.from_dict(values | tables)
        theirs = class_.from_pretrained(folder, config=config, local_files_only=True).float().eval()
    except Exception as error:  # of many kinds: of transformers, huggingface_hub, safetensors and torch
        raise UserError(f"transformers cannot load {folder} as {family}{head}: {error}") from None
    real = _real_tokens(tokens, lengths)
    inputs = {"input_ids": tokens, "token_type_ids": token_types, "attention_mask": real.long()}
    if head == "ForMultipleChoice":  # [samples, choices, tokens]: each input as one of one choice
        inputs = {name: value[:, None] for name, value in inputs.items()}
    output: Any = theirs(**inputs)
    if head == "ForQuestionAnswering":
        return {"logits": torch.stack([output.start_logits, output.end_logits], dim=2)[real]}
    if task_head is not None:
        return {"logits": output.logits[real] if task_head.per_token else output.logits}
    if head == "Model":
        return {"hidden states": output.last_hidden_state[real]}
    if head == "ForMaskedLM":
        return {"MLM logits": output.logits[real]}
    return {"MLM logits": output.prediction_logits[real], "SOP logits": output.seq_relationship_logits}


def _fill(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(parameters[name]) if name in parameters else parameter.zero_()


def _real_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    """bool [b, s]: the tokens that are not padding."""
    return torch.arange(tokens.shape[1]) < lengths[:, None]


if __name__ == "__main__":
    main_guard(main)
