"""Learning rate and global batch size as pure functions of the samples consumed: there is nothing to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron.config import OptimizerConfig, PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up and decay counted in samples."""

    config: OptimizerConfig
    warmup: int
    decay: int

    def learning_rate(self, samples: int) -> float:
        """The rate of the step that starts at `samples` consumed samples; shapes as in Megatron-LM."""
        config, peak, low = self.config, self.config.lr, self.config.min_lr
        if samples < self.warmup:
            return config.lr_warmup_init + (peak - config.lr_warmup_init) * samples / self.warmup
        if config.lr_decay_style == "constant":
            return peak
        if config.lr_decay_style == "inverse-square-root":
            return max(low, peak * math.sqrt(max(self.warmup, 1) / max(samples, 1)))
        if samples >= self.decay:
            return low
        done = (samples - self.warmup) / (self.decay - self.warmup)
        left = 1.0 - done if config.lr_decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return low + (peak - low) * left


def schedule_of(config: PretrainConfig) -> Schedule:
    """The schedule of a run, from its options in steps or samples."""
    optimizer, batch = config.optimizer, config.training.global_batch_size
    total = total_samples(config)
    decay = (optimizer.lr_decay_iters or 0) * batch or optimizer.lr_decay_samples or total
    warmup = optimizer.lr_warmup_iters * batch or optimizer.lr_warmup_samples
    if optimizer.lr_warmup_fraction is not None:
        warmup = int(optimizer.lr_warmup_fraction * decay)
    return Schedule(config=optimizer, warmup=min(warmup, decay), decay=decay)


def total_samples(config: PretrainConfig) -> int:
    """Samples of the whole run."""
    train = config.training
    return train.train_samples or (train.train_iters or 0) * train.global_batch_size


def global_batch_size(config: PretrainConfig, consumed: int) -> int:
    """Samples of the step that starts at `consumed` samples: ramps up in equal stretches (Megatron-LM)."""
    target = config.training.global_batch_size
    if config.training.rampup_batch_size is None:
        return target
    start, increment, samples = config.training.rampup_batch_size
    increments = (target - start) // increment
    if consumed >= samples or not increments:
        return target
    return start + increment * (consumed * increments // samples)
