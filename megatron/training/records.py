"""Records of a run: one object feeds the console, JSON lines, TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from megatron.config import LoggingConfig
from megatron.errors import UserError
from megatron.training.step import Totals
from megatron.training.throughput import throughput_line

# Names in TensorBoard that users of Megatron-LM know.
_TENSORBOARD = {
    "loss": "loss",
    "accuracy": "accuracy",
    "mlm_loss": "lm loss",
    "sop_loss": "sop loss",
    "mlm_accuracy": "lm accuracy",
    "sop_accuracy": "sop accuracy",
    "learning_rate": "learning-rate",
    "grad_norm": "grad-norm",
    "loss_scale": "loss-scale",
    "global_batch_size": "batch-size",
    "step_seconds": "iteration-time",
    "tokens_per_second": "throughput",
    "model_tflops_per_second": "model-tflops",
    "mfu": "mfu",
    "loader_wait_seconds": "loader-wait",
    "peak_memory_bytes": "peak-memory",
    "peak_memory_reserved_bytes": "peak-memory-reserved",
}


def losses_of(totals: Totals) -> dict[str, float]:
    """Mean losses (nats) and accuracies; SOP is left out without the binary head."""
    masked, samples = max(totals.masked, 1.0), max(totals.samples, 1.0)
    return {
        "mlm_loss": totals.mlm / masked,
        "sop_loss": totals.sop / samples,
        "mlm_accuracy": totals.mlm_hits / masked,
        "sop_accuracy": totals.sop_hits / samples,
    }


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Recorder:
    """Writes records on the main rank; does nothing on the others."""

    def __init__(self, options: LoggingConfig, config: dict[str, Any], *, is_main: bool, step: int) -> None:
        """config: what the run is described by in Weights & Biases. step: the last one that is not done again; later
        rows of the metrics file are from a run cut off.

        Raises `UserError` if a file cannot be written or wandb is missing.
        """
        self._main = is_main
        self._file = self._tensorboard = self._wandb = None
        if not is_main:
            return
        if options.metrics_file is not None:
            self._file = _open_metrics(Path(options.metrics_file), step)
        if options.tensorboard_dir is not None:
            if importlib.util.find_spec("tensorboard") is None:
                raise UserError("--tensorboard-dir needs the package tensorboard: pip install tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(options.tensorboard_dir, purge_step=step + 1)
        if options.wandb_project is not None:
            if importlib.util.find_spec("wandb") is None:
                raise UserError("--wandb-project needs the package wandb: pip install wandb")
            import wandb  # type: ignore[import-not-found, unused-ignore]

            self._wandb = wandb.init(project=options.wandb_project, name=options.wandb_exp_name, config=config)

    def say(self, message: str) -> None:
        """A line for the reader of the console."""
        if self._main:
            print(message, flush=True)

    def write(self, record: dict[str, Any], line: str) -> None:
        """A record, and its line for the console."""
        if not self._main:
            return
        print(line, flush=True)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        prefix = "" if record["split"] == "train" else f"{record['split']} "
        if self._tensorboard is not None:
            for name, tag in _TENSORBOARD.items():
                if name in record:
                    self._tensorboard.add_scalar(prefix + tag, record[name], record["step"])
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({prefix + k: v for k, v in record.items() if k not in ("step", "split")}, record["step"])

    def close(self) -> None:
        """Flush and close what is open."""
        for sink in (self._file, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_metrics(path: Path, step: int) -> Any:
    """The metrics file to append to, without rows after `step`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    print(f"{path}: dropped a line that is not a record", file=sys.stderr)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--metrics-file {path} cannot be written: {error.strerror}") from None


def train_line(record: dict[str, Any], steps: str, eta: float) -> str:
    """The console line of a training record. steps: "100/1000"; eta: seconds left."""
    skipped = f" | skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    scale = f" | scale {record['loss_scale']:.0f}" if record["loss_scale"] != 1 else ""
    return (
        f"step {steps} | samples {record['consumed_samples']} | {losses_line(record)} | "
        f"lr {record['learning_rate']:.3e} | norm {record['grad_norm']:.3f}{scale}{skipped} | "
        f"{throughput_line(record)} | ETA {clock(eta)}"
    )


def losses_line(record: dict[str, Any]) -> str:
    """Losses and accuracies in words."""
    return (
        f"mlm {record['mlm_loss']:.4f} ({record['mlm_accuracy']:.1%}) | "
        f"sop {record['sop_loss']:.4f} ({record['sop_accuracy']:.1%})"
    )
