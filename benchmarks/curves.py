"""The figure of quality.py: loss over steps and over wall time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the results of quality.py as SVG, byte for byte the same each time; a colour a name, a line a seed."""
    with matplotlib.rc_context({"svg.hashsalt": "quality", "svg.fonttype": "none"}):
        _draw(found, path)


def _draw(found: dict[str, Any], path: Path) -> None:
    names = list(dict.fromkeys(run["name"] for run in found["runs"]))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, column, label in zip(axes, (0, 1), ("step", "seconds of training"), strict=True):
        for run in found["runs"]:
            first = next(other for other in found["runs"] if other["name"] == run["name"])
            axis.plot(
                [point[column] for point in run["points"]],
                [point[2] for point in run["points"]],
                "-" if run is first else "--",
                color=f"C{names.index(run['name'])}",
                label=run["name"] if run is first else None,
                linewidth=1.2,
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("MLM loss (nats)")
    axes[1].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
