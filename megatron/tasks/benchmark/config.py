"""Every option of a benchmark, once; those of its runs are finetune_clue.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.errors import raise_problems


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """All tasks of a benchmark. Flags of finetune_clue.py for every run follow after `--`."""

    benchmark: Literal["clue1.1", "clue1.0", "fewclue"] = "clue1.1"
    """Which tasks, and under which names its server reads their predictions."""
    tasks: tuple[str, ...] = ()
    """Tasks by name [default: those of the benchmark whose data is there]."""
    data_dir: str = ""
    """Folder with a folder for each task (AFQMC or afqmc_public; FewCLUE/eprstmt)."""
    pretrained_checkpoint: str = ""
    """A checkpoint folder of ours or a Hugging Face folder to start every run from."""
    output_dir: str = ""
    """Folder for the runs and the table: results.md, results.json, results.png."""
    global_batch_size: tuple[int, ...] = ()
    """Batch sizes to try [default: the task's published grid, as for the learning rate and dropout]."""
    lr: tuple[float, ...] = ()
    """Learning rates to try."""
    dropout: tuple[float, ...] = ()
    """Dropout to try, of hidden states and attention alike."""
    seeds: tuple[int, ...] = (1234,)
    """Every point of the grid is run with each seed."""
    jobs: int | None = None
    """Runs side by side [default: one for every GPU, or --processes of them; one on a CPU]."""
    processes: int = 1
    """Processes of one run, each on its GPU; more than one run under torchrun."""
    keep_checkpoints: Literal["best", "all"] = "best"
    """Whether the weights of runs that are not the best of their task are kept."""
    submission: str | None = None
    """Folder for the predictions of each task's best run on its test files and their archive, which is validated."""
    team: str = "team"
    """Name in the archive's file name, submit_TEAM_DATE.zip."""
    validate: str | None = None
    """Only check this archive, against the test files in --data-dir where they are there."""

    def check(self) -> None:
        """Raises `UserError` naming every violated rule at once."""
        required = {
            "--data-dir FOLDER": self.data_dir,
            "--pretrained-checkpoint FOLDER": self.pretrained_checkpoint,
            "--output-dir FOLDER": self.output_dir,
        }
        found = [f"{flag} is required" for flag, value in required.items() if not value and self.validate is None]
        if self.data_dir and not Path(self.data_dir).is_dir():
            found.append(f"--data-dir {self.data_dir} is not a folder")
        for name in ("jobs", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name} must be at least 1, not {value}")
        if not self.seeds:
            found.append("--seeds needs at least one seed")
        if not self.team or any(character in self.team for character in "/\\"):
            found.append(f"--team {self.team!r} cannot be part of a file name")
        raise_problems(found)


GIVEN_BEFORE = {
    **dict.fromkeys(("task", "eval-only", "predict"), "the benchmark sets it itself"),
    "zero-shot": "there is nothing to try without training; use finetune_clue.py --zero-shot --predict",
    **{
        flag: f"give {by} before the --"
        for flag, by in {
            "data-dir": "--data-dir",
            "pretrained-checkpoint": "--pretrained-checkpoint",
            "output-dir": "--output-dir",
            "global-batch-size": "--global-batch-size",
            "lr": "--lr",
            "hidden-dropout": "--dropout",
            "attention-dropout": "--dropout",
            "seed": "--seeds",
        }.items()
    },
}


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of the benchmark, and those after `--`."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])
