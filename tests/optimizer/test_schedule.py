import math

import pytest

from megatron.config import OptimizerConfig, PretrainConfig, TrainingConfig
from megatron.optimizer.schedule import Schedule, global_batch_size, schedule_of, total_samples


def run(optimizer: OptimizerConfig, **training: object) -> PretrainConfig:
    values = {"micro_batch_size": 4, "global_batch_size": 8, **training}
    return PretrainConfig(optimizer=optimizer, training=TrainingConfig(**values))


def test_linear_reaches_its_corners() -> None:
    schedule = schedule_of(run(OptimizerConfig(lr=1.0, min_lr=0.1, lr_warmup_iters=10), train_iters=100))
    assert schedule.learning_rate(40) == pytest.approx(0.5)
    assert schedule.learning_rate(80) == pytest.approx(1.0)
    assert schedule.learning_rate(440) == pytest.approx(0.55)
    assert schedule.learning_rate(800) == schedule.learning_rate(10_000) == 0.1


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("linear", 0.1 + 0.9 * 0.75),
        ("cosine", 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25))),
        ("constant", 1.0),
        ("inverse-square-root", math.sqrt(20 / 40)),
    ],
)
def test_styles(style: str, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, min_lr=0.1, lr_decay_style=style)  # type: ignore[arg-type]
    assert Schedule(config=config, warmup=20, decay=100).learning_rate(40) == pytest.approx(expected)


def test_warm_up_starts_at_its_initial_rate() -> None:
    config = OptimizerConfig(lr=1.0, lr_warmup_init=0.2)
    assert Schedule(config=config, warmup=100, decay=200).learning_rate(50) == pytest.approx(0.6)
    assert Schedule(config=config, warmup=100, decay=200).learning_rate(0) == 0.2


def test_decay_and_warm_up_in_every_unit() -> None:
    iters = schedule_of(run(OptimizerConfig(lr=1.0, lr_decay_iters=50, lr_warmup_fraction=0.1), train_iters=100))
    samples = schedule_of(run(OptimizerConfig(lr=1.0, lr_decay_samples=400, lr_warmup_samples=40), train_samples=800))
    assert (iters.warmup, iters.decay) == (samples.warmup, samples.decay) == (40, 400)


def test_batch_ramps_up_in_equal_stretches() -> None:
    config = run(OptimizerConfig(lr=1.0), global_batch_size=32, rampup_batch_size=(8, 8, 300), train_samples=1000)
    sizes, consumed = [], 0
    while consumed < total_samples(config):
        sizes.append(global_batch_size(config, consumed))
        consumed += sizes[-1]
    assert sorted(sizes) == sizes and set(sizes) == {8, 16, 24, 32}
    for size in (8, 16, 24):
        assert abs(size * sizes.count(size) - 100) < 32
