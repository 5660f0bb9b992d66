"""A run as the planner sees it: a model, a layout and the sizes of a step. Pure data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megatron.config import ModelConfig, ParallelConfig, PretrainConfig, with_vocabulary
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError
from megatron.model.parts import ModelPart, own_parts
from megatron.mpu.layout import Layout, layout_of_world
from megatron.mpu.pipeline.plan import make_plan
from megatron.mpu.pipeline.timeline import Timeline, simulate

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout of one run.

    samples, sequence: of a micro-batch; masked: its positions at which the head is computed; micro_batches: of a step,
    on each data-parallel rank; on_gpu: not a CPU, whose attention with dropout is another. The model's vocab_size
    must be known.
    """

    model: ModelConfig
    parallel: ParallelConfig
    layout: Layout
    on_gpu: bool
    dtype: Literal["fp32", "bf16", "fp16"]
    samples: int
    sequence: int
    masked: int
    micro_batches: int

    @property
    def element(self) -> int:
        """Bytes of a number of the model's weights and activations."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def tensor(self) -> int:
        """Processes that share a layer."""
        return self.layout.tensor

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations outside the divided linear layers are divided too."""
        return self.parallel.sequence_parallel and self.tensor > 1

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, padding included."""
        return self.samples * self.sequence

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch whose hidden states a rank holds outside the divided linear layers."""
        return self.tokens // self.tensor if self.sequence_parallel else self.tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of a step over all processes, padding included."""
        return self.tokens * self.micro_batches * self.layout.data

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the word table on a rank, with its padding."""
        return -(-self.model.vocab_size // self.tensor)

    def parts(self, stage: int) -> tuple[ModelPart, ...]:
        """The parts of the model on a pipeline stage."""
        return _parts(self.model, self.parallel, stage)

    @property
    def timeline(self) -> Timeline:
        """A step of the pipeline in unit time; of a few micro-batches where they are many, as `steady` says."""
        parallel = self.parallel
        schedule, chunks = parallel.schedule(self.model), parallel.chunks(self.model)
        return _timeline(schedule, self.layout.pipeline, chunks, self.steady)

    @property
    def steady(self) -> int:
        """Micro-batches that are enough to see what a longer step does: each group more adds work and no idle time.

        Neither the idle time of a plan nor the activations it holds grow after the pipeline is full.
        """
        stages = self.layout.pipeline
        enough = 2 * stages * (self.parallel.chunks(self.model) + 1)
        return min(self.micro_batches, enough + (self.micro_batches - enough) % stages)

    @property
    def bubble(self) -> float:
        """Idle time of the pipeline relative to its work, with stages of equal cost (arXiv 2104.04473)."""
        return self.timeline.bubble * self.steady / self.micro_batches


@lru_cache(maxsize=4096)
def _parts(model: ModelConfig, parallel: ParallelConfig, stage: int) -> tuple[ModelPart, ...]:
    return tuple(own_parts(model, parallel, stage))


@lru_cache(maxsize=1024)
def _timeline(
    schedule: Literal["1f1b", "interleaved", "zero-bubble"], stages: int, chunks: int, micro_batches: int
) -> Timeline:
    plan = make_plan(schedule, stages=stages, chunks=chunks, micro_batches=micro_batches)
    return simulate(plan, stages=stages, chunks=chunks)


def for_planning(config: PretrainConfig) -> PretrainConfig:
    """The configuration with stand-ins for what a plan does not depend on: data, learning rate, length of the run.

    A stand-in is used only where the option is not given.
    """
    data, training = config.data, config.training
    sentencepiece = data.tokenizer_type == "SentencePieceTokenizer"
    given_length = training.train_iters is not None or training.train_samples is not None
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            data_path=data.data_path or (() if data.has_own_paths else ("CORPUS_text_sentence",)),
            vocab_file=data.vocab_file or (None if sentencepiece else "vocab.txt"),
            tokenizer_model=data.tokenizer_model or ("tokenizer.model" if sentencepiece else None),
        ),
        optimizer=config.optimizer if config.optimizer.lr else dataclasses.replace(config.optimizer, lr=1e-4),
        training=training if given_length else dataclasses.replace(training, train_iters=1_000_000),
    )


def with_word_table(config: PretrainConfig) -> PretrainConfig:
    """The configuration with the size of the word table: of the vocabulary, where its file is given.

    config: as given, without stand-ins. Raises `UserError` if neither file nor size is given, and for a bad file.
    """
    data, tokens = config.data, config.model.vocab_size
    if data.vocab_file is not None or data.tokenizer_model is not None:
        tokens = load_tokenizer(data.tokenizer_type, data.vocab_file, data.tokenizer_model).vocab_size
    if not tokens:
        raise UserError("a plan needs the size of the word table: --vocab-size N, a --preset with one, or --vocab-file")
    return dataclasses.replace(config, model=with_vocabulary(config.model, tokens))


def case_of(config: PretrainConfig, world_size: int, *, on_gpu: bool = True) -> Case:
    """The case of a resolved configuration whose vocabulary size is known, on `world_size` processes."""
    parallel, training, sequence = config.parallel, config.training, config.data.seq_length
    layout = layout_of_world(
        world_size, tensor=parallel.tensor_model_parallel_size, pipeline=parallel.pipeline_model_parallel_size
    )
    return Case(
        model=config.model,
        parallel=parallel,
        layout=layout,
        on_gpu=on_gpu,
        dtype=config.precision.dtype,
        samples=training.micro_batch_size,
        sequence=sequence,
        masked=training.micro_batch_size * max(1, round(config.data.largest_mask_prob * sequence)),
        micro_batches=training.global_batch_size // (training.micro_batch_size * layout.data),
    )
