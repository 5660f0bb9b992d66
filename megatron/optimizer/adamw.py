"""AdamW over flat fp32 masters (Loshchilov and Hutter, arXiv 1711.05101), with clipping and skipped steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megatron.config import OptimizerConfig, PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.grads import Bucket, FlatParameters, Run, full_rate
from megatron.mpu.sharding import Piece
from megatron.ops import apex
from megatron.ops.adamw import Update, adamw_
from megatron.optimizer.loss_scale import LossScale, initial_loss_scale, next_loss_scale

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step did. grad_norm: before clipping, of the unscaled gradient; skipped: it was not finite."""

    grad_norm: float
    skipped: bool


class Optimizer:
    """Owns a model's parameters: their fp32 masters, gradients and moments.

    From construction on, the model's parameters are on the context's device in the number format of training. With
    ZeRO-1 each data-parallel rank has masters and moments of its own part of every bucket only.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        config: OptimizerConfig,
        precision: PrecisionConfig,
        context: ParallelContext,
        *,
        sharded: bool = False,
        bucket_size: int = 40_000_000,
        units: Sequence[nn.Module] = (),
        rate_of: Callable[[str], float] = full_rate,
    ) -> None:
        """modules: this stage's parts of the model; sharded, bucket_size, units, rate_of: as in `FlatParameters`."""
        self.config = config
        self.precision = precision
        self.flat = FlatParameters(
            modules,
            DTYPES[precision.dtype],
            context,
            sharded=sharded,
            bucket_size=bucket_size,
            units=units,
            rate_of=rate_of,
        )
        self.loss_scale: LossScale = initial_loss_scale(precision)
        self.steps = 0
        self.masters = [bucket.masters for bucket in self.flat.buckets]
        self.exp_avg = [torch.zeros_like(masters) for masters in self.masters]
        self.exp_avg_sq = [torch.zeros_like(masters) for masters in self.masters]
        self._earlier_passes: list[torch.Tensor] = []

    def begin_step(self, micro_batches: int) -> None:
        """Forget the gradients of the last step; backwards of so many micro-batches follow."""
        self._earlier_passes = []
        self.flat.begin_step(micro_batches)

    def finish_pass(self) -> None:
        """Finish the reduction of the gradients of a pass that `next_pass` follows; `gradients` has them until then."""
        self.flat.finish_reduction()

    def next_pass(self, micro_batches: int) -> None:
        """Once more over the batch of a step, after `finish_pass`: the gradients of both passes are added up."""
        self._earlier_passes = [bucket.own_gradients.clone() for bucket in self.flat.buckets]
        self.flat.begin_step(micro_batches)

    def step(self, learning_rate: float) -> Outcome:
        """Finish the reduction of the gradients, clip, update. All ranks take or skip the step alike."""
        flat = self.flat
        flat.finish_reduction()
        for bucket, earlier in zip(flat.buckets, self._earlier_passes, strict=False):
            bucket.own_gradients.add_(earlier)
        scale = self.loss_scale.scale
        norm = flat.gradient_norm() / scale
        finite = math.isfinite(norm)
        self.loss_scale = next_loss_scale(self.loss_scale, finite, self.precision)
        if not finite:
            return Outcome(grad_norm=norm, skipped=True)
        clip = self.config.clip_grad
        factor = (min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0) / scale
        self.steps += 1
        for bucket, first, second in zip(flat.buckets, self.exp_avg, self.exp_avg_sq, strict=True):
            for run in bucket.runs:
                if run.rate > 0:
                    self._update(bucket, run, first, second, factor, learning_rate)
        flat.start_gathering()
        return Outcome(grad_norm=norm, skipped=False)

    def _update(
        self, bucket: Bucket, run: Run, first: torch.Tensor, second: torch.Tensor, factor: float, learning_rate: float
    ) -> None:
        """AdamW on a stretch of a bucket. first, second: the moments of its own part."""
        part, config = slice(run.start, run.stop), self.config
        update = Update(
            factor=factor,
            learning_rate=learning_rate * run.rate,
            weight_decay=config.weight_decay if run.decay else 0.0,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            epsilon=config.adam_eps,
            step=self.steps,
        )
        copy = None if self.flat.dtype == torch.float32 else bucket.weights[bucket.own][part]
        apply = apex.adamw_ if config.optimizer == "apex-adam" else adamw_
        apply(bucket.masters[part], bucket.own_gradients[part], first[part], second[part], copy, update)

    def weights(self, *, once: bool = False) -> list[Piece]:
        """The fp32 masters that this rank holds, under global names; `once` as in `FlatParameters.pieces`.

        Who writes into them calls `publish` then.
        """
        return self.flat.pieces(self.masters, once=once)

    def moments(self, *, once: bool = False) -> list[Piece]:
        """Adam's moments under "exp_avg." or "exp_avg_sq." and the global name, as `weights`."""
        return self.flat.pieces(self.exp_avg, prefix="exp_avg.", once=once) + self.flat.pieces(
            self.exp_avg_sq, prefix="exp_avg_sq.", once=once
        )

    def gradients(self, *, once: bool = False) -> list[Piece]:
        """The gradients of the last step, reduced, neither clipped nor divided by the loss scale, as `weights`."""
        return self.flat.pieces([bucket.own_gradients for bucket in self.flat.buckets], once=once)

    def publish(self) -> None:
        """Give the masters' values to the model on all ranks."""
        self.flat.publish()

    def scalars(self) -> dict[str, Any]:
        """The rest of the state as JSON values."""
        return {"steps": self.steps, "loss_scale": dataclasses.asdict(self.loss_scale)}

    def load_scalars(self, values: dict[str, Any]) -> None:
        """Take over the values of `scalars`."""
        self.steps = int(values["steps"])
        if self.precision.fp16:
            self.loss_scale = LossScale(**values["loss_scale"])
