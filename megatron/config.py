"""Every option of pre-training, once: name, type, default, unit, help text and check.

Flags, `--config` files, the saved `config.json` and the table of flags in the docs are derived from these
dataclasses (see `megatron/arguments.py`). Names and defaults are Megatron-LM's where it has them. A zero or None
stands for "not given"; `PretrainConfig.resolved` replaces it by the value that follows from the other options.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.errors import UserError


def _nearest_divisors(number: int, value: int) -> str:
    """The three divisors of `number` that are nearest to `value`, in words."""
    choices = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(map(str, sorted(sorted(choices, key=lambda n: abs(n - value))[:3])))


def _equal_split(number: int, parts: int) -> str:
    """A --pipeline-split of `number` layers into parts that differ by one layer at most."""
    return ",".join(str(number // parts + (part < number % parts)) for part in range(parts))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the encoder."""

    architecture: Literal["megatron-bert", "bert"] = "megatron-bert"
    """megatron-bert: LayerNorm before each block (MegatronBertForPreTraining); bert: after it (BertForPreTraining)."""
    num_layers: int = 0
    """Transformer layers."""
    hidden_size: int = 0
    """Width of the hidden states."""
    num_attention_heads: int = 0
    """Attention heads; must divide --hidden-size."""
    ffn_hidden_size: int = 0
    """Width inside the MLP [default: 4 x --hidden-size]."""
    max_position_embeddings: int = 0
    """Rows of the position table; at least --seq-length."""
    vocab_size: int = 0
    """Rows of the word table [default: the vocabulary's size]; more rows than tokens are allowed."""
    make_vocab_size_divisible_by: int = 1
    """Round the rows of the word table up to a multiple of this."""
    type_vocab_size: int = 2
    """Token types (segments A and B)."""
    task_type_vocab_size: int = 0
    """ERNIE's task types; 0 for none. Training uses task type 0."""
    activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
    """MLP activation: erf GELU, tanh GELU or ReLU."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm."""
    hidden_dropout: float = 0.1
    """Dropout of embeddings and block outputs."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights."""
    bert_no_binary_head: bool = False
    """Train without sentence-order prediction: no pooler and no binary head."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def problems(self) -> list[str]:
        """Violations of the rules of a shape, as messages."""
        found = [
            f"--{name.replace('_', '-')} is required (or a --preset that gives it)"
            for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
            if getattr(self, name) <= 0
        ]
        heads = self.num_attention_heads
        if heads > 0 and self.hidden_size > 0 and self.hidden_size % heads:
            found.append(
                f"--num-attention-heads {heads} does not divide --hidden-size {self.hidden_size}; "
                f"nearest that do: {_nearest_divisors(self.hidden_size, heads)}"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"--{name.replace('_', '-')} must be in [0, 1), not {getattr(self, name)}")
        if self.make_vocab_size_divisible_by < 1:
            found.append("--make-vocab-size-divisible-by must be at least 1")
        if self.layernorm_epsilon <= 0:
            found.append("--layernorm-epsilon must be positive")
        if self.type_vocab_size < 2 and not self.bert_no_binary_head:
            found.append("--type-vocab-size must be at least 2 with the binary head (segments A and B)")
        return found


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
                    f"{_nearest_divisors(value, tensor)}"
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
                    f"{sum(split)}" + (f"; e.g. {_equal_split(layers, pipeline)}" if layers >= pipeline else "")
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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora, samples and masking."""

    data_path: tuple[str, ...] = ()
    """One prefix of preprocessed files, or WEIGHT PREFIX WEIGHT PREFIX ... to blend corpora."""
    split: str = "969,30,1"
    """Shares of documents for training, validation and test."""
    data_cache_path: str | None = None
    """Folder for sample indices [default: a folder cache/ beside each corpus]."""
    seq_length: int = 0
    """Tokens of a sample, [CLS] and [SEP] included."""
    mask_prob: float = 0.15
    """Share of the tokens to predict."""
    short_seq_prob: float = 0.1
    """Share of samples that are made shorter than --seq-length."""
    max_ngrams: int = 3
    """Longest run of consecutive words masked together."""
    num_workers: int = 2
    """Threads that assemble batches ahead of training; 0: none."""
    tokenizer_type: Literal["BertWordPieceCase", "BertWordPieceLowerCase", "SentencePieceTokenizer"] = (
        "BertWordPieceLowerCase"
    )
    """Kind of tokenizer; that of preprocessing."""
    vocab_file: str | None = None
    """vocab.txt of the WordPiece tokenizers."""
    tokenizer_model: str | None = None
    """Model file of SentencePieceTokenizer."""

    def problems(self) -> list[str]:
        """Violations of the rules of the data options, as messages."""
        found = []
        if not self.data_path:
            found.append("--data-path is required")
        if self.seq_length <= 0:
            found.append("--seq-length is required")
        elif not 8 <= self.seq_length <= 65535:
            found.append(f"--seq-length must be between 8 and 65535, not {self.seq_length}")
        for name, low, high in (("mask_prob", 0.0, 1.0), ("short_seq_prob", -1e-9, 1.0)):
            if not low < getattr(self, name) <= high:
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)} is not a probability")
        if self.max_ngrams < 1:
            found.append("--max-ngrams must be at least 1")
        if self.num_workers < 0:
            found.append("--num-workers must not be negative")
        sentencepiece = self.tokenizer_type == "SentencePieceTokenizer"
        if sentencepiece and not self.tokenizer_model:
            found.append("--tokenizer-type SentencePieceTokenizer needs --tokenizer-model FILE")
        if not sentencepiece and not self.vocab_file:
            found.append(f"--tokenizer-type {self.tokenizer_type} needs --vocab-file FILE (vocab.txt)")
        return found


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the learning rate. No weight decay on biases and LayerNorms."""

    optimizer: Literal["adam"] = "adam"
    """AdamW (decoupled weight decay), as Megatron's adam."""
    lr: float = 0.0
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["linear", "cosine", "constant", "inverse-square-root"] = "linear"
    """Shape of the decay after warm-up."""
    lr_decay_iters: int | None = None
    """Steps until --min-lr is reached, warm-up included [default: the whole run]."""
    lr_decay_samples: int | None = None
    """The same in samples, for runs with --train-samples."""
    lr_warmup_fraction: float | None = None
    """Warm-up as a share of the decay."""
    lr_warmup_iters: int = 0
    """Steps of linear warm-up."""
    lr_warmup_samples: int = 0
    """The same in samples, for runs with --train-samples."""
    lr_warmup_init: float = 0.0
    """Learning rate at the start of warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_grad: float = 1.0
    """Largest norm of the whole gradient; 0 for no clipping."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""

    def problems(self) -> list[str]:
        """Violations of the rules of the optimizer options, as messages."""
        found = []
        if self.lr <= 0:
            found.append("--lr is required and positive")
        elif not 0 <= self.min_lr <= self.lr:
            found.append(f"--min-lr {self.min_lr} must be between 0 and --lr {self.lr}")
        if not 0 <= self.lr_warmup_init <= max(self.lr, 0):
            found.append(f"--lr-warmup-init {self.lr_warmup_init} must be between 0 and --lr {self.lr}")
        if self.lr_warmup_fraction is not None:
            if not 0 <= self.lr_warmup_fraction < 1:
                found.append("--lr-warmup-fraction must be in [0, 1)")
            if self.lr_warmup_iters or self.lr_warmup_samples:
                found.append("--lr-warmup-fraction excludes --lr-warmup-iters and --lr-warmup-samples")
        if self.clip_grad < 0 or self.weight_decay < 0:
            found.append("--clip-grad and --weight-decay must not be negative")
        return found


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats. fp32 unless said; 16-bit runs keep fp32 master weights and sum gradients in fp32."""

    bf16: bool = False
    """Train in bfloat16."""
    fp16: bool = False
    """Train in float16 with loss scaling (CUDA)."""
    loss_scale: float | None = None
    """Fixed loss scale for --fp16 [default: dynamic]."""
    initial_loss_scale: float = 2.0**32
    """First dynamic loss scale."""
    min_loss_scale: float = 1.0
    """Smallest dynamic loss scale."""
    loss_scale_window: int = 1000
    """Finite steps after which the dynamic loss scale doubles."""
    hysteresis: int = 2
    """Steps that are not finite before the dynamic loss scale halves."""

    @property
    def dtype(self) -> Literal["fp32", "bf16", "fp16"]:
        """Number format of parameters and activations."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    def problems(self) -> list[str]:
        """Violations of the rules of the precision options, as messages."""
        found = []
        if self.bf16 and self.fp16:
            found.append("--bf16 and --fp16 exclude each other")
        if self.loss_scale is not None and not self.fp16:
            found.append("--loss-scale needs --fp16")
        if self.min_loss_scale <= 0 or self.initial_loss_scale < self.min_loss_scale:
            found.append("--initial-loss-scale must be at least --min-loss-scale, which must be positive")
        if self.loss_scale_window < 1 or self.hysteresis < 1:
            found.append("--loss-scale-window and --hysteresis must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of the run, batches and evaluation."""

    micro_batch_size: int = 0
    """Samples that one process takes through the model at a time."""
    global_batch_size: int = 0
    """Samples of one step over all processes [default: --micro-batch-size x data-parallel size]."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """START INCREMENT SAMPLES: grow the global batch from START to --global-batch-size over SAMPLES samples."""
    train_iters: int | None = None
    """Steps of the run; or give --train-samples."""
    train_samples: int | None = None
    """Samples of the run; or give --train-iters."""
    eval_interval: int = 1000
    """Steps between evaluations; 0 for none."""
    eval_iters: int = 100
    """Global batches of one evaluation; 0 for none."""
    skip_train: bool = False
    """Only evaluate."""
    seed: int = 1234
    """Seed of initial weights, sample order, masks and dropout."""
    exit_interval: int | None = None
    """Save and exit when the step is a multiple of this."""
    exit_duration_in_mins: float | None = None
    """Save and exit after this many minutes."""
    max_skipped_steps: int = 50
    """Stop after this many steps in a row whose loss or gradient is not finite."""

    def problems(self) -> list[str]:
        """Violations of the rules of the training options, as messages."""
        found = []
        if self.micro_batch_size <= 0:
            found.append("--micro-batch-size is required")
        if (self.train_iters is None) == (self.train_samples is None):
            found.append("give one of --train-iters and --train-samples")
        for name in ("train_iters", "train_samples", "exit_interval", "exit_duration_in_mins", "max_skipped_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"--{name.replace('_', '-')} must be positive, not {value}")
        for name in ("eval_interval", "eval_iters", "seed", "global_batch_size"):
            if getattr(self, name) < 0:
                found.append(f"--{name.replace('_', '-')} must not be negative")
        if self.rampup_batch_size is not None:
            if self.train_samples is None:
                found.append("--rampup-batch-size needs a run of --train-samples")
            start, increment, samples = self.rampup_batch_size
            if min(start, increment) <= 0 or samples < 0:
                found.append("--rampup-batch-size START and INCREMENT must be positive, SAMPLES not negative")
        return found


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints. A command started again continues from the newest checkpoint in --save."""

    save: str | None = None
    """Folder to write checkpoints to."""
    load: str | None = None
    """Folder of the checkpoint to start from when --save has none yet."""
    ckpt_step: int | None = None
    """Step of the checkpoint in --load [default: the newest]."""
    save_interval: int | None = None
    """Steps between checkpoints [default: only at the end]."""
    finetune: bool = False
    """Take only the weights from --load: step 0, fresh optimizer and data."""
    no_load_optim: bool = False
    """Do not load the optimizer's state from --load."""
    no_save_optim: bool = False
    """Do not save the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Records of the run. Losses in them are those of the whole global batch."""

    log_interval: int = 100
    """Steps between records."""
    metrics_file: str | None = None
    """JSON lines, one object a record."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard events."""
    wandb_project: str | None = None
    """Weights & Biases project (needs wandb installed)."""
    wandb_exp_name: str | None = None
    """Weights & Biases name of the run."""
    pipeline_trace: str | None = None
    """Folder for the executed schedule of the last recorded step (tools/show_schedule.py draws it)."""


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
        found = self.model.problems() + self.data.problems() + self.optimizer.problems()
        found += self.parallel.problems(self.model, world_size)
        tensor = self.parallel.tensor_model_parallel_size
        if self.parallel.sequence_parallel and tensor > 1 and self.data.seq_length % tensor:
            below = self.data.seq_length // tensor * tensor
            found.append(
                f"--sequence-parallel needs a --seq-length that --tensor-model-parallel-size {tensor} divides, not "
                f"{self.data.seq_length}; nearest: {below} or {below + tensor}"
            )
        found += self.precision.problems() + self.training.problems()
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
        if self.logging.log_interval < 1:
            found.append("--log-interval must be at least 1")
        return found + self.dry_run.problems()

    def resolved(self, *, world_size: int) -> "PretrainConfig":
        """Fill in what follows from other options on `world_size` processes.

        Raises `UserError` naming every violated rule at once.
        """
        problems = self.problems(world_size)
        if problems:
            raise UserError(
                "; ".join(problems) if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems:", *problems])
            )
        model, train = self.model, self.training
        data_parallel_size = world_size // self.parallel.model_parallel_size
        return dataclasses.replace(
            self,
            model=dataclasses.replace(model, ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size),
            training=dataclasses.replace(
                train, global_batch_size=train.global_batch_size or train.micro_batch_size * data_parallel_size
            ),
        )


def with_vocabulary(model: ModelConfig, tokens: int) -> ModelConfig:
    """The model with its word table sized for a vocabulary of `tokens` tokens.

    Raises `UserError` if `--vocab-size` is smaller than the vocabulary.
    """
    if model.vocab_size and model.vocab_size < tokens:
        raise UserError(f"--vocab-size {model.vocab_size} is smaller than the vocabulary of {tokens} tokens")
    multiple = model.make_vocab_size_divisible_by
    rows = math.ceil((model.vocab_size or tokens) / multiple) * multiple
    return dataclasses.replace(model, vocab_size=rows)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, section by section."""
    return {
        f.name: to_dict(getattr(config, f.name))
        if dataclasses.is_dataclass(getattr(config, f.name))
        else getattr(config, f.name)
        for f in dataclasses.fields(config)
    }


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The model section of a saved configuration; fields of other versions are an error.

    Raises `UserError` naming the unknown fields.
    """
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"the checkpoint's config.json has unknown model fields: {', '.join(unknown)}")
    return ModelConfig(**values)
