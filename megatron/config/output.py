"""Checkpoints and records."""

from dataclasses import dataclass


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
