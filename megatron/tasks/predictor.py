"""Predictions of a fine-tuned model, in one process: what its checkpoint says of its task is all that is needed."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron.checkpoint.store import CONFIG
from megatron.config import ParallelConfig, PrecisionConfig
from megatron.data.tokenizer import Tokenizer
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import DTYPES
from megatron.tasks.batching import WINDOW_BATCHES
from megatron.tasks.descriptions import described_task
from megatron.tasks.evaluation import outputs_of
from megatron.tasks.model import TaskModel, build
from megatron.tasks.pretrained import load_weights, open_pretrained
from megatron.tasks.readers import Row
from megatron.tasks.task import Task

Item = str | Sequence[str] | Mapping[str, Any]
"""What to predict: a text, several texts that belong together, or a row with the keys of the task as a dictionary."""
_ITEMS = Path("items")


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A fine-tuned model, ready to predict. Made by `load_predictor`."""

    task: Task
    model: TaskModel
    tokenizer: Tokenizer
    seq_length: int
    batch_size: int

    def __call__(self, items: Sequence[Item], *, progress: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
        """A prediction for each item, as the task's kind gives it; of classification its label and all probabilities.

        progress: told how many more items are done, some thousand at a time. Raises `UserError` for an item that has
        not the form of the task, numbered from 1.
        """
        if isinstance(items, str | Mapping):
            raise UserError("give a list of items to predict, even of one")
        rows = [Row(_ITEMS, number, _values(item, number)) for number, item in enumerate(items, 1)]
        examples = [self.parse(row) for row in rows]
        found: list[dict[str, Any]] = []
        for start in range(0, len(examples), self.chunk):
            chunk = examples[start : start + self.chunk]
            found += self.predict(chunk)
            if progress is not None:
                progress(len(chunk))
        return found

    @property
    def chunk(self) -> int:
        """Examples to encode at a time: enough that batches of like length can be made of them."""
        return WINDOW_BATCHES * self.batch_size

    def parse(self, row: Row) -> Any:
        """The example of a row. Raises `UserError` naming the row if it has not the form of the task."""
        return self.task.parse(self.task, row)

    def predict(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions for examples of `parse`, one at least; batches are of like length."""
        task = self.task
        encoded = task.kind.encode(task, examples, self.tokenizer, self.seq_length)
        outputs, _ = outputs_of(task, self.model, encoded, batch_size=self.batch_size)
        predictions = task.kind.decode(task, examples, encoded, outputs)
        return [
            task.kind.as_json(task, example, prediction)
            for example, prediction in zip(examples, predictions, strict=True)
        ]


def load_predictor(
    checkpoint: str | Path,
    *,
    device: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 64,
) -> Predictor:
    """The predictor of a fine-tuned checkpoint (OUTPUT/best of a run), or of a Hugging Face folder with such a head.

    device: "cpu", "cuda", "cuda:1", ... [default: a GPU where there is one]. Raises `UserError` if the checkpoint is
    missing, damaged, not fine-tuned, or of an unknown task.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be positive, not {batch_size}")
    context = ParallelContext.single(_device(device))
    with tempfile.TemporaryDirectory() as workspace, contextlib.redirect_stdout(sys.stderr):
        pretrained = open_pretrained(Path(checkpoint), Path(workspace) / "converted", context)
        if pretrained.task is None:
            raise UserError(f"{checkpoint} is not fine-tuned; give the folder best/ in a fine-tuning run's output")
        task, seq_length = described_task(pretrained.task, pretrained.folder / CONFIG)
        if seq_length > pretrained.model.max_position_embeddings:
            raise UserError(f"{pretrained.folder / CONFIG}: seq_length {seq_length} is above the model's positions")
        model = build(
            pretrained.model,
            ParallelConfig(),
            PrecisionConfig(bf16=dtype == "bf16", fp16=dtype == "fp16"),
            context,
            head=task.kind.head,
            num_outputs=task.kind.num_outputs(task),
            seed=0,
        )
        load_weights(model.chunks, pretrained, fine_tuned=True, context=context)
    for chunk in model.chunks:
        chunk.to(context.device, DTYPES[dtype])
    return Predictor(
        task=task, model=model, tokenizer=pretrained.tokenizer, seq_length=seq_length, batch_size=batch_size
    )


def _device(given: str | None) -> str:
    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {given!r} cannot be used: {str(error).splitlines()[0]}") from None
    return given


def _values(item: Item, number: int) -> dict[str, Any]:
    """An item as the values of a row."""
    if isinstance(item, Mapping):
        return dict(item)
    texts = [item] if isinstance(item, str) else list(item) if isinstance(item, Sequence) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        shown = json.dumps(item, ensure_ascii=False, default=repr)[:80]
        raise UserError(f"item {number} is neither a text, nor texts, nor a dictionary, but {shown}")
    return {"texts": texts}
