"""What a fine-tuning run consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig
from megatron.tasks.model import TaskModel
from megatron.tasks.pretrained import Pretrained
from megatron.tasks.task import Hyperparameters, Task
from megatron.training.records import Recorder


@dataclass(frozen=True, kw_only=True)
class Run:
    """Built by `megatron.tasks.finetune`; hyper: the task's hyper-parameters with those of the command line."""

    config: FinetuneConfig
    context: ParallelContext
    task: Task
    hyper: Hyperparameters
    pretrained: Pretrained
    model: TaskModel
    recorder: Recorder
    output: Path

    @property
    def evaluation_batch_size(self) -> int:
        """Rows at a time where no gradients are kept; the same for any number of processes."""
        return 4 * (self.config.tuning.micro_batch_size or self.hyper.global_batch_size)
