"""The grid of a task's hyper-parameters, and the published grids.

Those of PaddleNLP's CLUE benchmark for the tasks of CLUE, and of its few-shot runs for FewCLUE.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """One choice. dropout: of the hidden states and of the attention alike."""

    global_batch_size: int
    lr: float
    dropout: float

    def __str__(self) -> str:
        return f"batch {self.global_batch_size}, lr {self.lr:g}, dropout {self.dropout:g}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All choices are tried together."""

    global_batch_sizes: tuple[int, ...] = (16, 32, 64)
    lrs: tuple[float, ...] = (1e-5, 2e-5, 3e-5, 5e-5)
    dropouts: tuple[float, ...] = (0.1,)

    def points(self) -> list[Point]:
        """Every choice, each once."""
        choices = itertools.product(self.global_batch_sizes, self.lrs, self.dropouts)
        return [Point(global_batch_size=batch, lr=lr, dropout=dropout) for batch, lr, dropout in dict.fromkeys(choices)]


_READING = Grid(global_batch_sizes=(24, 32), lrs=(1e-5, 2e-5, 3e-5))


def published_grid(task: str) -> Grid:
    """The grid of a task by its name; that of classification for those without a published one."""
    if task.startswith("fewclue-"):
        return Grid(global_batch_sizes=(8, 16, 32), lrs=(2e-5, 5e-5, 1e-4, 5e-4))
    if task in ("cmrc2018", "drcd", "chid", "c3"):
        return _READING
    if task == "cluener2020":
        return Grid(global_batch_sizes=(24, 32), lrs=(2e-5, 3e-5))
    if task == "cluewsc2020":
        return Grid(global_batch_sizes=(8, 16, 32, 64), dropouts=(0.1, 0.0))
    if task == "iflytek":
        return Grid(dropouts=(0.1, 0.0))
    return Grid()
