"""Layout over processes."""

from dataclasses import dataclass
from typing import Literal

from megatron.config.model import ModelConfig
from megatron.config.suggest import equal_split, nearest_divisors


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Layout over processes, and what saves memory. Data parallelism is what remains of the number of processes."""

    tensor_model_parallel_size: int = 1
    """Processes that share each layer's matrices and heads."""
    sequence_parallel: bool = False
    """Divide LayerNorm, dropout and residuals along the sequence over the tensor-parallel processes."""
    pipeline_model_parallel_size: int = 1
    """Stages that the layers are divided into."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of a chunk, for several chunks a stage (interleaved schedule)."""
    pipeline_schedule: Literal["1f1b", "interleaved", "zero-bubble"] | None = None
    """Order of a pipeline's work [default: 1f1b; interleaved with several chunks a stage]."""
    pipeline_split: str | None = None
    """Layers of each part, e.g. 7,6,6,5 [default: equal; balanced with the head where they do not divide]."""
    use_distributed_optimizer: bool = False
    """Divide optimizer state and fp32 master weights over the data-parallel processes (ZeRO-1)."""
    ddp_bucket_size: int = 40_000_000
    """Gradients that are reduced together, elements."""
    recompute_granularity: Literal["selective", "full"] | None = None
    """Compute activations again in the backward: those inside attention, or those inside layers."""
    recompute_method: Literal["uniform", "block"] | None = None
    """full: stretches of --recompute-num-layers layers (uniform), or that many layers of each part (block)."""
    recompute_num_layers: int | None = None
    """Layers of a stretch, or of a part, that are computed again."""
    distributed_backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Communication library [default: nccl on CUDA, gloo on CPU]."""
    distributed_timeout_minutes: float = 10.0
    """Time after which a collective that not all ranks reach is an error, minutes."""
    startup_timeout_minutes: float = 30.0
    """Time after which a phase of start-up that not all ranks have finished is an error, minutes."""

    @property
    def model_parallel_size(self) -> int:
        """Processes that share one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def chunks(self, model: ModelConfig) -> int:
        """Parts of the model that each stage holds."""
        if self.pipeline_split is not None:
            return len(self.layers_of_split()) // self.pipeline_model_parallel_size
        if self.num_layers_per_virtual_pipeline_stage is None:
            return 1
        return model.num_layers // (self.pipeline_model_parallel_size * self.num_layers_per_virtual_pipeline_stage)

    def num_parts(self, model: ModelConfig) -> int:
        """Parts that the model is divided into."""
        return self.pipeline_model_parallel_size * self.chunks(model)

    def schedule(self, model: ModelConfig) -> Literal["1f1b", "interleaved", "zero-bubble"]:
        """The order of a pipeline's work."""
        return self.pipeline_schedule or ("interleaved" if self.chunks(model) > 1 else "1f1b")

    def layers_of_split(self) -> tuple[int, ...]:
        """--pipeline-split as numbers."""
        return tuple(int(layers) for layers in (self.pipeline_split or "").split(","))

    def problems(self, model: ModelConfig, world_size: int) -> list[str]:
        """Violations of the rules of a layout for a model on `world_size` processes, as messages."""
        tensor, pipeline = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        found = []
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "ddp_bucket_size"):
            if getattr(self, name) < 1:
                found.append(f"--{name.replace('_', '-')} must be at least 1")
        if found:
            return found
        if world_size % self.model_parallel_size:
            below = world_size // self.model_parallel_size * self.model_parallel_size
            above = below + self.model_parallel_size
            near = " or ".join(str(n) for n in (below, above) if n > 0)
            found.append(
                f"{world_size} processes cannot be divided into --tensor-model-parallel-size {tensor} x "
                f"--pipeline-model-parallel-size {pipeline}; nearest numbers of processes: {near}"
            )
        for flag, value in (
            ("--num-attention-heads", model.num_attention_heads),
            ("--ffn-hidden-size", model.ffn_hidden_size or 4 * model.hidden_size),
        ):
            if value > 0 and value % tensor:
                found.append(
                    f"--tensor-model-parallel-size {tensor} does not divide {flag} {value}; nearest that do: "
                    f"{nearest_divisors(value, tensor)}"
                )
        if self.sequence_parallel and tensor == 1:
            found.append("--sequence-parallel needs --tensor-model-parallel-size above 1")
        return found + self._pipeline_problems(model) + self._recompute_problems()

    def _pipeline_problems(self, model: ModelConfig) -> list[str]:
        pipeline, layers, virtual = (
            self.pipeline_model_parallel_size,
            model.num_layers,
            self.num_layers_per_virtual_pipeline_stage,
        )
        found = []
        if layers > 0 and pipeline > layers:
            found.append(f"--pipeline-model-parallel-size {pipeline} is above --num-layers {layers}; at most {layers}")
        if virtual is not None:
            if virtual < 1 or (layers > 0 and layers % (pipeline * virtual)):
                choices = [n for n in range(1, layers + 1) if layers % (pipeline * n) == 0]
                near = ", ".join(map(str, sorted(sorted(choices, key=lambda n: abs(n - virtual))[:3])))
                near = near or "none; --pipeline-split states chunks of unequal size"
                found.append(
                    f"--num-layers-per-virtual-pipeline-stage {virtual} x {pipeline} stages does not divide "
                    f"--num-layers {layers}; nearest that do: {near}"
                )
                return found
            if self.pipeline_split is not None:
                found.append("--pipeline-split excludes --num-layers-per-virtual-pipeline-stage: it states the chunks")
        if self.pipeline_split is not None:
            try:
                split = self.layers_of_split()
            except ValueError:
                return [*found, f"--pipeline-split {self.pipeline_split} is not a list of numbers like 7,6,6,5"]
            if min(split) < 1 or (layers > 0 and sum(split) != layers) or len(split) % pipeline:
                found.append(
                    f"--pipeline-split {self.pipeline_split} must be positive, sum to --num-layers {layers} and have "
                    f"{pipeline} parts, or a multiple for several chunks a stage; it has {len(split)} and sums to "
                    f"{sum(split)}" + (f"; e.g. {equal_split(layers, pipeline)}" if layers >= pipeline else "")
                )
                return found
        schedule, chunks = self.schedule(model), self.chunks(model)
        if schedule != "interleaved" and chunks > 1:
            found.append(f"--pipeline-schedule {schedule} has one chunk a stage, not {chunks}; use interleaved")
        if schedule == "interleaved" and chunks == 1 and pipeline > 1:
            found.append("--pipeline-schedule interleaved needs --num-layers-per-virtual-pipeline-stage")
        return found

    def _recompute_problems(self) -> list[str]:
        found = []
        for name in ("recompute_method", "recompute_num_layers"):
            if getattr(self, name) is not None and self.recompute_granularity != "full":
                found.append(f"--{name.replace('_', '-')} needs --recompute-granularity full")
        if self.recompute_num_layers is not None and self.recompute_num_layers < 1:
            found.append("--recompute-num-layers must be at least 1")
        return found
