"""Pre-training as a whole: all sections, the rules between them, and what follows from them."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.config.data import DataConfig
from megatron.config.model import ModelConfig
from megatron.config.output import CheckpointConfig, LoggingConfig
from megatron.config.parallel import ParallelConfig
from megatron.config.training import OptimizerConfig, PrecisionConfig, TrainingConfig
from megatron.errors import raise_problems


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """Look at a run of any size on one process: no other process, no data and no weights are needed."""

    dry_run: bool = False
    """Check every rule, print the layout, memory and plan of one rank, and exit."""
    world_size: int | None = None
    """Processes of the run to look at [default: those that run]."""
    rank: int = 0
    """The rank to look at."""

    def problems(self) -> list[str]:
        """Violations of the rules of a dry run, as messages."""
        if not self.dry_run:
            given = {"--world-size": self.world_size is not None, "--rank": self.rank != 0}
            return [f"{flag} needs --dry-run" for flag, is_given in given.items() if is_given]
        if self.world_size is not None and self.world_size < 1:
            return [f"--world-size must be at least 1, not {self.world_size}"]
        if not 0 <= self.rank < (self.world_size or self.rank + 1):
            return [f"--rank {self.rank} must be from 0 to {(self.world_size or 1) - 1}, below --world-size"]
        return []


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-training of a BERT-like encoder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    dry_run: DryRunConfig = field(default_factory=DryRunConfig)

    def problems(self, world_size: int) -> list[str]:
        """Every violated rule, as messages."""
        data_parallel_size = max(world_size // max(self.parallel.model_parallel_size, 1), 1)
        data = dataclasses.replace(self.data, sentence_objective=self.sentence_objective)
        model = dataclasses.replace(self.model, bert_no_binary_head=self.sentence_objective == "none")
        found = model.problems() + data.problems() + self.optimizer.problems()
        if self.model.bert_no_binary_head and self.data.sentence_objective == "nsp":
            found.append("--bert-no-binary-head excludes --sentence-objective nsp: give one of them")
        found += self.parallel.problems(self.model, world_size)
        tensor = self.parallel.tensor_model_parallel_size
        if self.parallel.sequence_parallel and tensor > 1 and self.data.seq_length % tensor:
            below = self.data.seq_length // tensor * tensor
            found.append(
                f"--sequence-parallel needs a --seq-length that --tensor-model-parallel-size {tensor} divides, not "
                f"{self.data.seq_length}; nearest: {below} or {below + tensor}"
            )
        found += self.precision.problems() + self.training.problems() + self.checkpoint.problems()
        if 0 < self.model.max_position_embeddings < self.data.seq_length:
            found.append(
                f"--max-position-embeddings {self.model.max_position_embeddings} is below "
                f"--seq-length {self.data.seq_length}"
            )
        train, optimizer = self.training, self.optimizer
        if train.train_samples is None and (optimizer.lr_decay_samples or optimizer.lr_warmup_samples):
            found.append("a run of --train-iters takes --lr-decay-iters and --lr-warmup-iters, not -samples")
        if train.train_samples is not None and (optimizer.lr_decay_iters or optimizer.lr_warmup_iters):
            found.append("a run of --train-samples takes --lr-decay-samples and --lr-warmup-samples, not -iters")
        chunk = train.micro_batch_size * data_parallel_size
        sizes = {"--global-batch-size": train.global_batch_size}
        if train.rampup_batch_size is not None:
            start, increment, _ = train.rampup_batch_size
            sizes |= {"--rampup-batch-size START": start, "--rampup-batch-size INCREMENT": increment}
            if train.global_batch_size and (
                train.global_batch_size < start or (train.global_batch_size - start) % increment
            ):
                found.append("--rampup-batch-size: --global-batch-size minus START must be a multiple of INCREMENT")
        for flag, size in sizes.items():
            if chunk > 0 and size % chunk:
                below, above = size // chunk * chunk, math.ceil(size / chunk) * chunk
                near = " or ".join(str(n) for n in (below, above) if n > 0)
                found.append(
                    f"{flag} {size} is not a multiple of --micro-batch-size {train.micro_batch_size} x "
                    f"data-parallel size {data_parallel_size}; nearest: {near}"
                )
        if self.checkpoint.save_interval is not None:
            if self.checkpoint.save_interval <= 0:
                found.append("--save-interval must be positive")
            if self.checkpoint.save is None:
                found.append("--save-interval needs --save FOLDER")
        for name in ("finetune", "no_load_optim", "ckpt_step"):
            if getattr(self.checkpoint, name) not in (None, False) and self.checkpoint.load is None:
                found.append(f"--{name.replace('_', '-')} needs --load FOLDER")
        if train.cuda_graphs:
            if self.parallel.model_parallel_size > 1:
                found.append("--cuda-graphs is for models that one GPU holds: no tensor or pipeline parallelism")
            if train.compile:
                found.append("--cuda-graphs excludes --compile: give one of them")
            if self.logging.pipeline_trace is not None:
                found.append("--cuda-graphs excludes --pipeline-trace, which takes the time of parts of a step")
        if self.training.skip_train and self.logging.profile is not None:
            found.append("--profile is for steps of training, so it excludes --skip-train")
        return found + self.logging.problems() + self.dry_run.problems()

    @property
    def sentence_objective(self) -> Literal["sop", "nsp", "none"]:
        """What the binary head learns; nothing without one."""
        return "none" if self.model.bert_no_binary_head else self.data.sentence_objective

    def resolved(self, *, world_size: int) -> "PretrainConfig":
        """Fill in what follows from other options on `world_size` processes.

        Raises `UserError` naming every violated rule at once.
        """
        raise_problems(self.problems(world_size))
        model, train = self.model, self.training
        data_parallel_size = world_size // self.parallel.model_parallel_size
        return dataclasses.replace(
            self,
            model=dataclasses.replace(
                model,
                ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size,
                bert_no_binary_head=self.sentence_objective == "none",
            ),
            data=dataclasses.replace(self.data, sentence_objective=self.sentence_objective),
            training=dataclasses.replace(
                train, global_batch_size=train.global_batch_size or train.micro_batch_size * data_parallel_size
            ),
        )


def run_among(sections: Any) -> PretrainConfig:
    """The run among the sections of a larger configuration; those that it lacks are at their defaults."""
    names = (section.name for section in dataclasses.fields(PretrainConfig) if hasattr(sections, section.name))
    return PretrainConfig(**{name: getattr(sections, name) for name in names})


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, section by section."""
    return {
        f.name: to_dict(getattr(config, f.name))
        if dataclasses.is_dataclass(getattr(config, f.name))
        else getattr(config, f.name)
        for f in dataclasses.fields(config)
    }
