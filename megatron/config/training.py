"""Optimizer, number formats, length of the run."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the learning rate. No weight decay on biases and LayerNorms."""

    optimizer: Literal["adam", "apex-adam"] = "adam"
    """AdamW (decoupled weight decay), as Megatron's adam; apex-adam: the same by NVIDIA's apex, which must be there."""
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
    spike_threshold: float | None = None
    """Say which samples a step had whose loss is above this many times the running mean."""
    compile: bool = False
    """Compile the layers with torch.compile, at the first steps. On a CPU this is slower than without."""
    layernorm: Literal["own", "apex"] = "own"
    """Kernels of LayerNorm: ours, fused with what comes before; or those of NVIDIA's apex, which must be there."""
    cuda_graphs: bool = False
    """Record the kernels of a micro-batch once and replay them (CUDA): for small models, limited by their host."""
    check_replicas_interval: int | None = None
    """Steps between comparisons of what ranks hold in common; a difference stops the run."""

    def problems(self) -> list[str]:
        """Violations of the rules of the training options, as messages."""
        found = []
        if self.micro_batch_size <= 0:
            found.append("--micro-batch-size is required")
        if (self.train_iters is None) == (self.train_samples is None):
            found.append("give one of --train-iters and --train-samples")
        for name in (
            "train_iters",
            "train_samples",
            "exit_interval",
            "exit_duration_in_mins",
            "max_skipped_steps",
            "check_replicas_interval",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"--{name.replace('_', '-')} must be positive, not {value}")
        if self.spike_threshold is not None and self.spike_threshold <= 1:
            found.append(f"--spike-threshold must be above 1, not {self.spike_threshold}")
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
