"""The division of a model into the parts that pipeline stages hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron.config import ModelConfig, ParallelConfig
from megatron.mpu.pipeline.split import layer_ranges, split_layers

_MASKED = 0.15  # share of tokens at which the head is computed


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """Layers `first` to `stop` - 1 of the whole model; embeddings with the first part, heads with the last.

    frozen_layers: the backward ends before the first so many layers of the whole model; None: it goes through all.
    """

    first: int
    stop: int
    has_embeddings: bool = True
    has_heads: bool = True
    frozen_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Which activations are computed again in the backward instead of being kept.

    granularity: None; "selective": those inside attention; "full": all inside stretches of `layers` layers
    ("uniform"), or inside each of the first `layers` layers of a part ("block").
    """

    granularity: str | None = None
    method: str = "uniform"
    layers: int = 1

    @classmethod
    def of(cls, parallel: ParallelConfig) -> Recompute:
        """As the options say."""
        return cls(
            granularity=parallel.recompute_granularity,
            method=parallel.recompute_method or "uniform",
            layers=parallel.recompute_num_layers or 1,
        )

    def stretches(self, numbers: list[str]) -> Iterator[tuple[list[str], bool]]:
        """A part's layers in stretches, each with whether it is computed again as one."""
        if self.granularity != "full":
            yield numbers, False
        elif self.method == "uniform":
            for start in range(0, len(numbers), self.layers):
                yield numbers[start : start + self.layers], True
        else:
            for number in numbers[: self.layers]:
                yield [number], True
            yield numbers[self.layers :], False


def recomputed(function: object, *arguments: object) -> Tensor:
    """Call a function and forget what it computed inside until its backward. Dropout needs no state, so the bits are
    the same."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def head_cost(config: ModelConfig) -> float:
    """Floating-point operations of the language-model head relative to a layer's, per token."""
    h, s = config.hidden_size, config.max_position_embeddings
    layer = 8 * h * h + 4 * h * config.ffn_hidden_size + 4 * s * h
    return _MASKED * 2 * h * (config.vocab_size + h) / layer


def split_of(config: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Layers of each part in order: --pipeline-split, else equal, else balanced with the head as a cost."""
    if parallel.pipeline_split is not None:
        return parallel.layers_of_split()
    return split_layers(config.num_layers, parallel.num_parts(config), first_extra=0.0, last_extra=head_cost(config))


def own_parts(config: ModelConfig, parallel: ParallelConfig, stage: int) -> list[ModelPart]:
    """The parts of a pipeline stage, in order of its chunks."""
    ranges = layer_ranges(split_of(config, parallel))
    last = len(ranges) - 1
    return [
        ModelPart(first=first, stop=stop, has_embeddings=part == 0, has_heads=part == last)
        for part, (first, stop) in enumerate(ranges)
        if part % parallel.pipeline_model_parallel_size == stage
    ]


def whole(config: ModelConfig) -> ModelPart:
    """The model in one part."""
    return ModelPart(first=0, stop=config.num_layers)
