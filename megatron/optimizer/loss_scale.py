"""Loss scale of fp16 training: a value that follows from the steps so far (Micikevicius et al., arXiv 1710.03740)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron.config import PrecisionConfig


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """The factor on the loss, finite steps since it changed, and bad steps it still bears."""

    scale: float = 1.0
    finite_steps: int = 0
    hysteresis: int = 1


def initial_loss_scale(config: PrecisionConfig) -> LossScale:
    """The scale of the first step: 1 unless fp16."""
    if not config.fp16:
        return LossScale()
    return LossScale(scale=config.loss_scale or config.initial_loss_scale, hysteresis=config.hysteresis)


def next_loss_scale(state: LossScale, finite: bool, config: PrecisionConfig) -> LossScale:
    """The scale after a step: halves when `hysteresis` bad steps are spent, doubles after a window of finite ones."""
    if not config.fp16 or config.loss_scale is not None:
        return state
    if finite:
        if state.finite_steps + 1 < config.loss_scale_window:
            return dataclasses.replace(state, finite_steps=state.finite_steps + 1)
        return LossScale(scale=state.scale * 2.0, hysteresis=config.hysteresis)
    if state.hysteresis > 1:
        return dataclasses.replace(state, finite_steps=0, hysteresis=state.hysteresis - 1)
    return dataclasses.replace(state, finite_steps=0, scale=max(state.scale / 2.0, config.min_loss_scale))
