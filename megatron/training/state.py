"""What a checkpoint of a run holds, and how a run starts: from its own newest checkpoint, from --load, or from none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron.checkpoint.store import find_checkpoint, has_optimizer, load_tensors, read_train_state
from megatron.config import CheckpointConfig
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from megatron.training.step import Totals

# Parts that a model for pre-training may start without, e.g. when a published encoder came without its heads.
_HEADS = ("pooler.", "lm_head.", "binary_head.")


@dataclass
class Progress:
    """Where a run stands. window: totals of the steps since the last record that were not skipped."""

    step: int = 0
    consumed_samples: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    window: Totals = field(default_factory=Totals)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint a run starts from. resumed: with its position; otherwise only weights (and optimizer)."""

    path: Path
    resumed: bool
    with_optimizer: bool


def find_origin(config: CheckpointConfig, context: ParallelContext) -> Origin | None:
    """The newest checkpoint in --save if there is one, else that of --load, else None.

    So the same command, started again, continues. Raises `UserError` if --load holds no checkpoint, unless it is
    the same folder as --save, and if there is none where --exit-on-missing-checkpoint is given.
    """
    fall_back = not config.no_checkpoint_fallback
    if config.save is not None:
        path = find_checkpoint(Path(config.save), context=context, fall_back=fall_back)
        if path is not None and not (config.ckpt_step is not None and config.save == config.load):
            return Origin(path=path, resumed=True, with_optimizer=not config.no_load_optim)
    path = None
    if config.load is not None:
        path = find_checkpoint(Path(config.load), config.ckpt_step, context=context, fall_back=fall_back)
    if path is None:
        same = config.load is None or (
            config.save is not None and Path(config.save).absolute() == Path(config.load).absolute()
        )
        if not same:
            raise UserError(
                f"--load {config.load} holds no checkpoint; check the path, or leave it out to start afresh"
            )
        if config.exit_on_missing_checkpoint:
            folders = (
                " or ".join(
                    f"--{name} {getattr(config, name)}"
                    for name in ("save", "load")
                    if getattr(config, name) is not None
                )
                or "--save or --load, which are not given"
            )
            raise UserError(f"there is no checkpoint in {folders} (--exit-on-missing-checkpoint)")
        return None
    return Origin(path=path, resumed=not config.finetune, with_optimizer=not (config.finetune or config.no_load_optim))


def load(origin: Origin, optimizer: Optimizer, context: ParallelContext) -> tuple[Progress, tuple[str, ...]]:
    """Load weights, moments and position. Returns the position and the names that the checkpoint lacks.

    Raises `UserError` on all ranks if the checkpoint is of another model.
    """
    with context.together():
        state, with_optimizer = read_train_state(origin.path), has_optimizer(origin.path)
    converted = not with_optimizer and state.get("step", 0) == 0
    lacking = load_tensors(
        origin.path,
        "model",
        optimizer.weights(),
        context=context,
        may_lack=_HEADS if converted or not origin.resumed else (),
        may_hold=("pooler.", "binary_head.", "task_head."),
    )
    optimizer.publish()
    if origin.with_optimizer and with_optimizer:
        load_tensors(origin.path, "optimizer", optimizer.moments(), context=context)
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
