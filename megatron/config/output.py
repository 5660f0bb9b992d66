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
    async_save: bool = False
    """Write checkpoints in the background, from a copy in memory."""
    keep_last: int | None = None
    """Keep the newest so many checkpoints and remove older ones [default: keep all]."""
    keep_every: int | None = None
    """With --keep-last: also keep the checkpoints of multiples of this step."""
    accept_changes: bool = False
    """Continue although model, data or batches are not those of the checkpoint; what changed is recorded."""
    exit_on_missing_checkpoint: bool = False
    """Stop if there is no checkpoint to start from."""
    no_checkpoint_fallback: bool = False
    """Stop if the newest checkpoint is damaged; by default the newest whole one is used."""

    def problems(self) -> list[str]:
        """Violations of the rules of the checkpoint options, as messages."""
        found = []
        for name in ("save_interval", "keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.keep_every is not None and self.keep_last is None:
            found.append("--keep-every needs --keep-last: without it no checkpoint is removed")
        if self.save is None:
            given = {"--async-save": self.async_save, "--keep-last": self.keep_last is not None}
            found += [f"{flag} needs --save FOLDER" for flag, is_given in given.items() if is_given]
        return found


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
    profile: str | None = None
    """Folder for a trace of PyTorch's profiler and a table of where the time of some steps goes."""
    profile_step_start: int = 10
    """First profiled step."""
    profile_step_end: int = 12
    """Last profiled step."""
    profile_ranks: tuple[int, ...] = (0,)
    """Profiled ranks."""

    def problems(self) -> list[str]:
        """Violations of the rules of the records, as messages."""
        found = []
        if self.log_interval < 1:
            found.append("--log-interval must be at least 1")
        if not 1 <= self.profile_step_start <= self.profile_step_end:
            found.append(
                f"--profile-step-start {self.profile_step_start} must be at least 1 and not above --profile-step-end "
                f"{self.profile_step_end}"
            )
        if self.profile is None:
            defaults = LoggingConfig()
            for name in ("profile_step_start", "profile_step_end", "profile_ranks"):
                if getattr(self, name) != getattr(defaults, name):
                    found.append(f"--{name.replace('_', '-')} needs --profile FOLDER")
        return found
