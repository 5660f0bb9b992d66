"""AdamW over flat fp32 masters (Loshchilov and Hutter, arXiv 1711.05101), with clipping and skipped steps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron.config import OptimizerConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.grads import FlatParameters
from megatron.mpu.sharding import ShardSpec, shard_of
from megatron.optimizer.loss_scale import LossScale, initial_loss_scale, next_loss_scale

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step did. grad_norm: before clipping, of the unscaled gradient; skipped: it was not finite."""

    grad_norm: float
    skipped: bool


class Optimizer:
    """Owns a model's parameters: their fp32 masters, gradients and moments.

    From construction on, the model's parameters are on the context's device in the number format of training.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, precision: PrecisionConfig, context: ParallelContext
    ) -> None:
        self.config = config
        self.precision = precision
        self.shards = {name: shard_of(parameter) for name, parameter in model.named_parameters()}
        self.flat = FlatParameters(model, DTYPES[precision.dtype], context)
        self.loss_scale: LossScale = initial_loss_scale(precision)
        self.steps = 0
        self.exp_avg = torch.zeros_like(self.flat.masters)
        self.exp_avg_sq = torch.zeros_like(self.flat.masters)

    def zero_gradients(self) -> None:
        """Forget the gradients of the last step."""
        self.flat.zero_gradients()

    def step(self, learning_rate: float) -> Outcome:
        """Reduce the gradients over data-parallel ranks, clip, update. All ranks take or skip the step alike."""
        flat = self.flat
        flat.reduce_gradients()
        scale = self.loss_scale.scale
        norm = flat.gradient_norm() / scale
        finite = math.isfinite(norm)
        self.loss_scale = next_loss_scale(self.loss_scale, finite, self.precision)
        if not finite:
            return Outcome(grad_norm=norm, skipped=True)
        clip = self.config.clip_grad
        factor = (min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0) / scale
        if factor != 1.0:
            flat.gradients.mul_(factor)
        self.steps += 1
        for decay in (True, False):
            self._update(decay, learning_rate)
        flat.publish()
        return Outcome(grad_norm=norm, skipped=False)

    def _update(self, decay: bool, learning_rate: float) -> None:
        """AdamW on the segments with or without weight decay."""
        segments = [segment for segment in self.flat.segments if segment.decay == decay]
        part = slice(segments[0].start, segments[-1].stop)
        if part.start == part.stop:
            return
        torch._fused_adamw_(
            [self.flat.masters[part]],
            [self.flat.gradients[part]],
            [self.exp_avg[part]],
            [self.exp_avg_sq[part]],
            [],
            [torch.tensor(float(self.steps), device=self.flat.masters.device)],
            lr=learning_rate,
            beta1=self.config.adam_beta1,
            beta2=self.config.adam_beta2,
            weight_decay=self.config.weight_decay if decay else 0.0,
            eps=self.config.adam_eps,
            amsgrad=False,
            maximize=False,
        )

    def weights(self) -> dict[str, tuple[Tensor, ShardSpec]]:
        """The fp32 masters by global name. After writing into them call `publish`."""
        return {name: (self.flat.of(name, self.flat.masters), self.shards[name]) for name in self.flat.names}

    def moments(self) -> dict[str, tuple[Tensor, ShardSpec]]:
        """Adam's moments by "exp_avg." or "exp_avg_sq." and the global name."""
        buffers = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {
            f"{kind}.{name}": (self.flat.of(name, buffer), self.shards[name])
            for kind, buffer in buffers.items()
            for name in self.flat.names
        }

    def publish(self) -> None:
        """Give the masters' values to the model, after they were loaded."""
        self.flat.publish()

    def scalars(self) -> dict[str, Any]:
        """The rest of the state as JSON values."""
        return {"steps": self.steps, "loss_scale": dataclasses.asdict(self.loss_scale)}

    def load_scalars(self, values: dict[str, Any]) -> None:
        """Take over the values of `scalars`."""
        self.steps = int(values["steps"])
        if self.precision.fp16:
            self.loss_scale = LossScale(**values["loss_scale"])
