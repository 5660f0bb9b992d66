"""The table of a benchmark: for each task the run that is best on its dev file, and the spread over seeds."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from megatron.tasks.benchmark.grid import Point
from megatron.tasks.benchmark.jobs import Job
from megatron.tasks.evaluation import NOT_SCORES


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of one task with one point of its grid and one seed."""

    task: str
    point: Point
    seed: int
    job: Job


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A finished trial and its dev metrics."""

    trial: Trial
    metrics: dict[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """The task's scores, in its order: the first is the one by which the best is chosen."""
        names = [name for name, value in self.metrics.items() if isinstance(value, (int, float))]
        return {name: self.metrics[name] for name in names if name not in NOT_SCORES}

    @property
    def metric(self) -> str:
        return next(iter(self.scores))

    @property
    def majority(self) -> float | None:
        """What always giving the commonest answer would score, for tasks where that says something."""
        return next((value for name, value in self.metrics.items() if name.startswith("majority_")), None)

    @property
    def score(self) -> float:
        return self.scores[self.metric]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A task's line: the best trial, and the scores of its point over seeds. std: of a sample, None for one seed."""

    best: Scored
    mean: float
    std: float | None
    seeds: int
    trials: tuple[Scored, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A row for each task with a finished trial; unfinished: names of trials, absent: tasks without data."""

    rows: tuple[Row, ...]
    checkpoint: str
    unfinished: tuple[str, ...]
    absent: tuple[str, ...]


def best_of(scored: Sequence[Scored]) -> Scored:
    """The trial with the highest score; of several the first."""
    return max(scored, key=lambda each: each.score)


def row_of(scored: Sequence[Scored]) -> Row:
    """The line of a task from its finished trials, at least one, in the order of its grid."""
    best = best_of(scored)
    same = [each.score for each in scored if each.trial.point == best.trial.point]
    return Row(
        best=best,
        mean=statistics.fmean(same),
        std=statistics.stdev(same) if len(same) > 1 else None,
        seeds=len(same),
        trials=tuple(scored),
    )


def as_json(table: Table) -> dict[str, Any]:
    """All that is in the table, and every trial."""
    return {
        "checkpoint": table.checkpoint,
        "tasks": [
            {
                "task": row.best.trial.task,
                "metric": row.best.metric,
                "best": _trial(row.best),
                "mean": row.mean,
                "std": row.std,
                "seeds": row.seeds,
                "majority": row.best.majority,
                "trials": [_trial(each) for each in row.trials],
            }
            for row in table.rows
        ],
        "average": _average(table.rows),
        "unfinished": list(table.unfinished),
        "no_data": list(table.absent),
    }


def _trial(scored: Scored) -> dict[str, Any]:
    trial = scored.trial
    return {
        "score": scored.score,
        "scores": scored.scores,
        "global_batch_size": trial.point.global_batch_size,
        "lr": trial.point.lr,
        "dropout": trial.point.dropout,
        "seed": trial.seed,
        "step": scored.metrics.get("step"),
        "folder": str(trial.job.folder),
    }


def _average(rows: Sequence[Row]) -> float | None:
    """The plain mean over tasks; reading comprehension counts by exact match, as in CLUE's total."""
    return statistics.fmean(row.best.scores.get("exact_match", row.best.score) for row in rows) if rows else None


def as_markdown(table: Table) -> str:
    """The table for a reader; scores in %."""
    lines = [
        f"Scores on dev (%) of {table.checkpoint}",
        "",
        "| task | metric | best | mean ± std (seeds) | majority | batch | lr | dropout | seed | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table.rows:
        trial, majority = row.best.trial, row.best.majority
        spread = f"{100 * row.mean:.2f}" + ("" if row.std is None else f" ± {100 * row.std:.2f}") + f" ({row.seeds})"
        cells = [
            trial.task,
            row.best.metric,
            f"{100 * row.best.score:.2f}",
            spread,
            "-" if majority is None else f"{100 * majority:.2f}",
            str(trial.point.global_batch_size),
            f"{trial.point.lr:g}",
            f"{trial.point.dropout:g}",
            str(trial.seed),
            str(len(row.trials)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    average = _average(table.rows)
    if average is not None and len(table.rows) > 1:
        lines.append(f"| mean of {len(table.rows)} | | {100 * average:.2f} |" + " |" * 7)
    lines += ["", "best: the highest of all runs of the task; mean and spread: its hyper-parameters over the seeds."]
    if table.absent:
        lines += ["", f"Left out, as their data is not there: {', '.join(table.absent)}."]
    if table.unfinished:
        lines += ["", f"Runs without a result: {'; '.join(table.unfinished)}."]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], output: Path) -> bool:
    """One panel a task: scores over the learning rate, a line each batch and dropout. False without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(rows))
    height = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4.2 * columns, 3.4 * height), squeeze=False)
    for axis, row in zip(axes.flat, rows, strict=False):
        shapes = {(each.trial.point.global_batch_size, each.trial.point.dropout) for each in row.trials}
        for batch, dropout in sorted(shapes):
            label = f"batch {batch}, dropout {dropout:g}"
            of_shape = [
                (each.trial.point.lr, 100 * each.score)
                for each in row.trials
                if (each.trial.point.global_batch_size, each.trial.point.dropout) == (batch, dropout)
            ]
            rates = sorted({rate for rate, _ in of_shape})
            means = [statistics.fmean(score for rate, score in of_shape if rate == each) for each in rates]
            (line,) = axis.plot(rates, means, label=label)
            axis.plot(*zip(*of_shape, strict=True), "o", markersize=4, color=line.get_color())  # each seed
        majority = row.best.majority
        if majority is not None:
            axis.axhline(100 * majority, color="gray", linestyle="--", linewidth=1, label="majority")
        axis.set_xscale("log")
        axis.set_title(f"{row.best.trial.task}: {row.best.metric} (%)")
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {output}: {error}") from None
    pyplot.close(figure)
    return True
