"""A model as an ONNX file, with the inputs and outputs of its Hugging Face class, checked with onnxruntime.

Written by torch's tracing exporter: it needs no package but onnx, and seconds where the other takes ten times as long.
What tracing could miss (branches, sizes) shows in the check, on inputs of other sizes than the one that was traced.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megatron.config import ModelConfig
from megatron.errors import UserError
from megatron.model import BertForPreTraining, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import vocabulary_product

TOLERANCE = 1e-4
"""Largest difference of two outputs in fp32, absolute, or relative to the largest output where that exceeds 1."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_BYTES = 2**31 - 2**20
"""Of weights: an ONNX file is one protocol buffer, which holds 2 GB."""


def check_onnx_packages() -> None:
    """Raises `UserError` if a package that `write_onnx` needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--onnx needs the packages onnx and onnxruntime ({error}); install them: pip install onnx onnxruntime"
        ) from None


class OnnxModel(nn.Module):
    """A model as its Hugging Face class is called: input_ids, attention_mask and token_type_ids, int64 [b, s] each.

    Multiple choice: [b, choices, s]. attention_mask: 1 for tokens, 0 for padding, in any order.
    """

    def __init__(self, config: ModelConfig, ending: str, parameters: Mapping[str, Tensor]) -> None:
        """ending: of the class's name, without the family. parameters: by global name; the model takes copies."""
        super().__init__()
        context = ParallelContext.single()
        self.ending = ending
        self.model: BertForTask | BertForPreTraining
        if "task_head.weight" in parameters:
            per_token = ending in ("ForTokenClassification", "ForQuestionAnswering")
            outputs = parameters["task_head.weight"].shape[0]
            self.model = BertForTask(config, context, num_outputs=outputs, per_token=per_token, dropout=0.0)
        else:
            self.model = BertForPreTraining(config, context)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(parameters[name]) if name in parameters else parameter.zero_()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        named = {"ForQuestionAnswering": ("start_logits", "end_logits"), "Model": ("last_hidden_state",)}
        named["ForPreTraining"] = ("prediction_logits", "seq_relationship_logits")
        return named.get(self.ending, ("logits",))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        sizes = input_ids.shape[:-1]
        tokens, mask, types = (x.flatten(0, -2) for x in (input_ids, attention_mask, token_type_ids))
        model = self.model
        assert model.embeddings is not None
        x = model.embeddings(tokens, types, None)
        x = model.encoder(x, mask == 0, None)  # [s, b, h]
        if isinstance(model, BertForPreTraining):
            if self.ending == "Model":
                return (x.transpose(0, 1),)
            hidden = model.lm_head(x.transpose(0, 1))
            logits = vocabulary_product(hidden, model.word_table, model.context) + model.lm_head.bias
            return (logits, model.sop_logits(x[0])) if self.ending == "ForPreTraining" else (logits,)
        if model.pooler is None:
            logits = model.task_head(x).transpose(0, 1)
            return logits.unbind(2) if self.ending == "ForQuestionAnswering" else (logits,)
        logits = model.task_head(model.pooler(x[0]))
        return (logits.reshape(sizes) if self.ending == "ForMultipleChoice" else logits,)


def write_onnx(file: Path, config: ModelConfig, ending: str, parameters: Mapping[str, Tensor]) -> float:
    """Write a model in fp32; batch and sequence (and choices) may have any size up to the positions.

    ending, parameters: as `OnnxModel`. The file appears when onnxruntime gives the same outputs, to `TOLERANCE`, on
    random inputs of several sizes. Returns the largest difference. Raises `UserError` if they differ, the model is
    above 2 GB, a package is missing, or the file cannot be written.
    """
    check_onnx_packages()
    size = sum(4 * parameter.numel() for parameter in parameters.values())
    if size > MAX_BYTES:
        raise UserError(f"--onnx: the model has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB")
    model = OnnxModel(config, ending, parameters).eval()
    axes = ("batch", "choices", "sequence") if ending == "ForMultipleChoice" else ("batch", "sequence")
    per_token = ending not in ("ForSequenceClassification", "ForMultipleChoice")
    dynamic = {name: dict(enumerate(axes)) for name in INPUTS}
    dynamic |= {name: dict(enumerate(axes if per_token else axes[:-1])) for name in model.output_names}
    dynamic |= {"seq_relationship_logits": {0: "batch"}} if ending == "ForPreTraining" else {}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter: what they warn of is checked below
            torch.onnx.export(
                model,
                _inputs(config, 2, min(7, config.max_position_embeddings), ending),
                str(temporary),
                input_names=list(INPUTS),
                output_names=list(model.output_names),
                dynamic_axes=dynamic,
                dynamo=False,
            )
        worst = _compare(temporary, model, config)
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"--onnx {file} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return worst


def _compare(file: Path, model: OnnxModel, config: ModelConfig) -> float:
    """The largest difference of any output on inputs of several sizes. Raises `UserError` if it is too large."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    longest = min(64, config.max_position_embeddings)
    worst = 0.0
    for batch, sequence in ((1, 1), (3, longest), (2, (longest + 1) // 2)):
        inputs = _inputs(config, batch, sequence, model.ending)
        with torch.no_grad():
            expected = model(*inputs)
        found = session.run(None, {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)})
        for name, ours, theirs in zip(model.output_names, expected, found, strict=True):
            ours = ours.numpy()
            difference = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
            if not difference <= TOLERANCE * max(1.0, np.abs(ours).max()):  # NaN fails too
                raise UserError(
                    f"--onnx: {name} of onnxruntime differ by {difference:.1e} (limit {TOLERANCE}); not exported"
                )
            worst = max(worst, float(difference))
    return worst


def _inputs(config: ModelConfig, batch: int, sequence: int, ending: str) -> tuple[Tensor, ...]:
    """Random input_ids, attention_mask and token_type_ids; the last sample has padding."""
    shape = (batch, 2, sequence) if ending == "ForMultipleChoice" else (batch, sequence)
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    types = torch.randint(min(2, config.type_vocab_size), shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, ..., (sequence + 1) // 2 :] = 0
    return tokens, mask, types
