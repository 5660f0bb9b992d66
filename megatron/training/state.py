"""What a checkpoint of a run holds, and how a run starts: from its own newest checkpoint, from --load, or from none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron.checkpoint.store import (
    MODEL,
    OPTIMIZER,
    find_checkpoint,
    load_tensors,
    read_train_state,
    save_checkpoint,
)
from megatron.config import CheckpointConfig, PretrainConfig, to_dict
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from megatron.training.step import Totals

# Parts that a model for pre-training may start without, e.g. when a published encoder came without its heads.
_HEADS = ("pooler.", "lm_head.", "binary_head.")


@dataclass
class Progress:
    """Where a run stands. window: totals of the steps since the last record, and how many they are."""

    step: int = 0
    consumed_samples: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    window: Totals = field(default_factory=Totals)
    window_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint a run starts from. resumed: with its position; otherwise only weights (and optimizer)."""

    path: Path
    resumed: bool
    with_optimizer: bool


def find_origin(config: CheckpointConfig, context: ParallelContext) -> Origin | None:
    """The newest checkpoint in --save if there is one, else that of --load, else None.

    So the same command, started again, continues. Raises `UserError` if --load holds no checkpoint, unless it is
    the same folder as --save.
    """
    if config.save is not None:
        path = find_checkpoint(Path(config.save), context=context)
        if path is not None and not (config.ckpt_step is not None and config.save == config.load):
            return Origin(path=path, resumed=True, with_optimizer=not config.no_load_optim)
    if config.load is None:
        return None
    path = find_checkpoint(Path(config.load), config.ckpt_step, context=context)
    if path is None:
        if config.save is not None and Path(config.save).absolute() == Path(config.load).absolute():
            return None
        raise UserError(f"--load {config.load} holds no checkpoint; check the path, or leave it out to start afresh")
    return Origin(path=path, resumed=not config.finetune, with_optimizer=not (config.finetune or config.no_load_optim))


def load(origin: Origin, optimizer: Optimizer, context: ParallelContext) -> tuple[Progress, tuple[str, ...]]:
    """Load weights, moments and position. Returns the position and the names that the checkpoint lacks.

    Raises `UserError` on all ranks if the checkpoint is damaged or of another model.
    """
    with context.together():
        state = read_train_state(origin.path)
        has_optimizer = (origin.path / OPTIMIZER).exists()
    has_optimizer = context.world.broadcast_object(has_optimizer)
    converted = not has_optimizer and state.get("step", 0) == 0
    lacking = optimizer.load_weights(
        lambda weights: load_tensors(
            origin.path / MODEL,
            weights,
            what="weights",
            context=context,
            may_lack=_HEADS if converted or not origin.resumed else (),
            may_hold=("pooler.", "binary_head.", "task_head."),
        )
    )
    if origin.with_optimizer and has_optimizer:
        optimizer.load_moments(
            lambda moments: load_tensors(origin.path / OPTIMIZER, moments, what="optimizer state", context=context)
        )
        optimizer.load_scalars(state["optimizer"])
    if not origin.resumed or converted:
        return Progress(), lacking
    return _progress_of(state, origin.path), lacking


def _progress_of(state: dict[str, Any], path: Path) -> Progress:
    try:
        values = {name: state[name] for name in asdict(Progress()) if name != "window"}
        return Progress(**values, window=Totals(**state["window"]))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no position to continue from ({error}); it is not a checkpoint of pre-training: "
            "take its weights with --load FOLDER --finetune and another --save"
        ) from None


def save(
    config: PretrainConfig,
    progress: Progress,
    optimizer: Optimizer,
    extra_files: dict[str, Path],
    context: ParallelContext,
) -> Path:
    """Write a checkpoint of the run into --save; called by all ranks."""
    assert config.checkpoint.save is not None
    return save_checkpoint(
        Path(config.checkpoint.save),
        progress.step,
        model=optimizer.weights(),
        optimizer={} if config.checkpoint.no_save_optim else optimizer.moments(),
        config=to_dict(config),
        train_state={**asdict(progress), "optimizer": optimizer.scalars()},
        extra_files=extra_files,
        context=context,
    )
