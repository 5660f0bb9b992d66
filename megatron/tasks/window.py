"""What happened in the steps since the last record, and the record of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from megatron.mpu.context import ParallelContext
from megatron.tasks.tuning.objective import Counts, Sums
from megatron.training.records import clock
from megatron.training.throughput import Peak, throughput_line, throughput_of


@dataclass
class Window:
    """Sums over steps that were not skipped. sums: losses, divergences (nats) and hits, fp64 [3], of this rank's rows.

    weight, labels: what they are divided by; started: `time.perf_counter()`. Of all steps: tokens, without padding;
    flops: model FLOPs; loader: seconds in which this rank has made batches.
    """

    sums: torch.Tensor
    started: float
    samples: int = 0
    weight: float = 0.0
    labels: int = 0
    tokens: int = 0
    flops: float = 0.0
    loader: float = 0.0
    steps: int = 0

    def add(self, sums: torch.Tensor, counts: Counts, samples: int) -> None:
        """A step that was not skipped: the losses of others may not be numbers."""
        self.sums += sums
        self.weight += counts.weight
        self.labels += counts.labels
        self.samples += samples


def new_window(context: ParallelContext) -> Window:
    """The window that begins now."""
    return Window(sums=new_sums(context), started=time.perf_counter())


def new_sums(context: ParallelContext) -> torch.Tensor:
    """Sums of nothing."""
    return torch.zeros(3, dtype=torch.float64, device=context.device)


def stacked(sums: Sums) -> torch.Tensor:
    """The sums of a micro-batch as one detached tensor, fp64 [3]."""
    return torch.stack([sums.loss, sums.divergence, sums.hits]).detach().double()


def train_record(
    position: dict[str, Any], window: Window, context: ParallelContext, peak: Peak, *, r_drop: float
) -> dict[str, Any]:
    """Means over the labels of all ranks in a window; the loss is all that was minimised. Collective."""
    loss, divergence, hits = context.pipeline.all_reduce_(context.data.all_reduce_(window.sums)).tolist()
    seconds, labels = time.perf_counter() - window.started, max(window.labels, 1)
    divergence /= labels
    return {
        "split": "train",
        **position,
        "loss": loss / (window.weight or 1.0) + r_drop * divergence,
        **({"divergence": divergence} if r_drop else {}),
        "accuracy": hits / labels,
        "samples_per_second": window.samples / seconds,
        **throughput_of(
            seconds=seconds,
            steps=window.steps,
            tokens=window.tokens,
            flops=window.flops,
            loader_seconds=window.loader,
            peak=peak,
            context=context,
        ),
    }


def train_line(record: dict[str, Any], steps: int) -> str:
    """The record in words, with the time left of so many steps."""
    left = (steps - record["step"]) * record["step_seconds"]
    skipped = f" | skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    return (
        f"step {record['step']}/{steps} | epoch {record['epoch']:.2f} | loss {record['loss']:.4f} "
        f"({record['accuracy']:.1%}) | lr {record['learning_rate']:.3e} | norm {record['grad_norm']:.3f}{skipped} "
        f"| {record['samples_per_second']:.0f} samples/s | {throughput_line(record)} | ETA {clock(left)}"
    )
