"""Loss curves of a run from the JSON lines that `--metrics-file` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from megatron.arguments import parse
from megatron.errors import UserError, main_guard

PANELS = {
    "mlm_loss": "masked LM loss (nats)",
    "sop_loss": "sentence order loss (nats)",
    "mlm_accuracy": "masked LM accuracy",
    "sop_accuracy": "sentence order accuracy",
    "tokens_per_second": "tokens a second",
    "mfu": "model FLOPs utilization",
}


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Plot losses and accuracies over the steps of one or more runs."""

    metrics_file: tuple[str, ...]
    """Files written by --metrics-file of pretrain_bert.py."""
    output: str
    """Picture to write; the ending says its format (.png, .svg, .pdf)."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, in order.

    Raises `UserError` for a missing or empty file and for a line that is not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--metrics-file {path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}, line {number}: not a record of a run (a JSON object with a step)")
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty: nothing was logged (see --log-interval)")
    return records


def plot(runs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """One panel a metric, one line a run and split; training is a line, evaluations are points."""
    shown = [name for name in PANELS if any(name in record for records in runs.values() for record in records)]
    figure, axes = pyplot.subplots((len(shown) + 1) // 2, 2, figsize=(11, 3.6 * ((len(shown) + 1) // 2)), squeeze=False)
    for axis, name in zip(axes.flat, shown, strict=False):
        for run, records in runs.items():
            for split in dict.fromkeys(record.get("split", "train") for record in records):
                rows = [r for r in records if r.get("split", "train") == split and name in r]
                label = split if len(runs) == 1 else f"{run} {split}"
                axis.plot(
                    [row["step"] for row in rows],
                    [row[name] for row in rows],
                    "-" if split == "train" else "o",
                    label=label,
                )
        axis.set_title(PANELS[name])
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output}: {error}") from None
    pyplot.close(figure)


def main() -> None:
    config = parse(PlotConfig, prog="plot_metrics.py", description="Plot the metrics of runs.")
    runs = {str(path): read_records(Path(path)) for path in config.metrics_file}
    plot(runs, Path(config.output))
    print(config.output)


if __name__ == "__main__":
    main_guard(main)
