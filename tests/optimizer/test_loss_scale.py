import dataclasses

from megatron.config import PrecisionConfig
from megatron.optimizer.loss_scale import LossScale, initial_loss_scale, next_loss_scale

CONFIG = PrecisionConfig(fp16=True, initial_loss_scale=16.0, min_loss_scale=4.0, loss_scale_window=3, hysteresis=2)


def after(steps: str, config: PrecisionConfig = CONFIG) -> LossScale:
    """The state after a row of finite (.) and bad (x) steps."""
    state = initial_loss_scale(config)
    for step in steps:
        state = next_loss_scale(state, step == ".", config)
    return state


def test_halves_when_hysteresis_is_spent() -> None:
    assert [after("x" * n).scale for n in range(4)] == [16, 16, 8, 4]


def test_does_not_fall_below_the_minimum() -> None:
    assert after("x" * 20).scale == 4


def test_doubles_after_a_window_without_bad_steps() -> None:
    assert after("..").scale == 16 and after("...").scale == 32 and after("..x..").scale == 16


def test_only_growth_refills_hysteresis() -> None:
    assert after("x..x").scale == 8
    assert after("x...x").scale == 32


def test_fixed_scale_and_other_precisions_never_change() -> None:
    fixed = dataclasses.replace(CONFIG, loss_scale=128.0)
    assert after("xxx...", fixed).scale == 128 and after("xxx...", PrecisionConfig()).scale == 1
