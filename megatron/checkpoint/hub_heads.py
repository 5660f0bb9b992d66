"""Heads of fine-tuned models: which Hugging Face class each is, and what its config.json says of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError

TASK = "megatron_task"
"""The key of config.json with all that a checkpoint says of its task: transformers keeps keys that it does not know."""


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A head. ending: of the class's name. linear: its layer there, "" for the one of masked words, which is not new.

    per_token: whether it stands on every token instead of the pooler. outputs: how many, None: one a label.
    """

    ending: str
    linear: str
    per_token: bool
    outputs: int | None = None


# By the kind of the task, as a checkpoint describes it.
TASK_HEADS = {
    "classification": TaskHead(ending="ForSequenceClassification", linear="classifier", per_token=False),
    "tagging": TaskHead(ending="ForTokenClassification", linear="classifier", per_token=True),
    "reading": TaskHead(ending="ForQuestionAnswering", linear="qa_outputs", per_token=True, outputs=2),
    "multiple-choice": TaskHead(ending="ForMultipleChoice", linear="classifier", per_token=False, outputs=1),
    "prompts": TaskHead(ending="ForMaskedLM", linear="", per_token=True),
}


def head_of_checkpoint(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Path
) -> tuple[TaskHead | None, list[str]]:
    """The head of a fine-tuned checkpoint, and its labels in order of its logits; None for a pre-trained model.

    shapes: of its weights. where: the checkpoint, for messages. Raises `UserError` where they do not fit.
    """
    task = config.get("task")
    kind = task.get("head") if isinstance(task, dict) else None
    outputs = shapes["task_head.weight"][0] if "task_head.weight" in shapes else 0
    if not outputs and kind != "prompts":
        return None, []
    head = TASK_HEADS.get(str(kind))
    if not isinstance(task, dict) or head is None or bool(outputs) != bool(head.linear):
        raise UserError(f"{where} is fine-tuned for {kind!r}, which no Hugging Face class is for")
    labels = task.get("labels", [])
    if not isinstance(labels, list) or (head.linear and outputs != (head.outputs or len(labels))):
        raise UserError(f"{where / 'config.json'}: the labels of its task do not fit its head")
    return head, [] if head.outputs else [str(label) for label in labels]


def description_of_folder(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, positions: int
) -> dict[str, Any] | None:
    """What a checkpoint made of a Hugging Face folder says of its task; None where the folder has no head of one.

    Of folders exported from here all that was said then; of others the labels, for a task of a user's own files.
    shapes: of its weights. positions: the longest input that the model can take.
    """
    described = config.get(TASK)
    described = described if isinstance(described, dict) else {}
    architectures = config.get("architectures")
    class_name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    for kind, head in TASK_HEADS.items():
        if not class_name.endswith(head.ending):
            continue
        if not head.linear:  # the head of masked words is that of a task only where this is said
            return described if described.get("head") == kind else None
        weight = shapes.get(f"{head.linear}.weight", ())
        if len(weight) != 2 or f"{head.linear}.bias" not in shapes or head.outputs not in (None, weight[0]):
            return None
        labels = _labels(config, 0 if head.outputs else weight[0])
        if described.get("head") == kind and (head.outputs or described.get("labels") == labels):
            return described
        return {"name": kind, "head": kind, "labels": labels, "seq_length": min(positions, 512)}
    return None


def _labels(config: Mapping[str, Any], count: int) -> list[str]:
    """The labels of a config.json by number, as transformers names those that it leaves out."""
    names = config.get("id2label")
    names = names if isinstance(names, dict) else {}
    return [str(names.get(str(number), f"LABEL_{number}")) for number in range(count)]
