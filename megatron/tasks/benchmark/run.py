"""A benchmark: all its tasks over a grid of hyper-parameters and seeds, one table, and the archive for its server."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.arguments import parse
from megatron.checkpoint import find_checkpoint
from megatron.checkpoint.files import MANIFEST
from megatron.config import to_dict
from megatron.errors import JobError, UserError, raise_problems
from megatron.files import write_file
from megatron.mpu.context import ParallelContext
from megatron.tasks.benchmark.archive import of_board, write_archive
from megatron.tasks.benchmark.boards import BOARDS, Board, task_folder
from megatron.tasks.benchmark.config import GIVEN_BEFORE, BenchmarkConfig
from megatron.tasks.benchmark.grid import Grid, published_grid
from megatron.tasks.benchmark.jobs import METRICS, Job, digest, find_slots, read_metrics, run_jobs, short_hash
from megatron.tasks.benchmark.leaderboard import Row, Scored, Table, Trial, as_json, as_markdown, best_of, draw, row_of
from megatron.tasks.benchmark.validation import validate_archive
from megatron.tasks.config import ADVICE, FinetuneConfig, ModelSourceConfig
from megatron.tasks.inputs import find_files, official_tests
from megatron.tasks.loop import BEST
from megatron.tasks.submission import json_text, submission_name
from megatron.tasks.table import find_task


def run_benchmark(config: BenchmarkConfig, flags: Sequence[str], script: Path) -> None:
    """Run a benchmark, or only check an archive. flags: of every run. script: finetune_clue.py.

    Raises `UserError` for what a user can mend before anything has begun and for an archive with mistakes, `JobError`
    naming the runs that failed after all others have ended.
    """
    config.check()
    board = next(board for board in BOARDS if board.name == config.benchmark)
    data_dir = Path(config.data_dir) if config.data_dir else None
    if config.validate is not None:
        if flags:
            raise UserError(f"--validate runs nothing, so no flags of runs follow: {' '.join(flags)}")
        check_archive(Path(config.validate), board, data_dir)
        return
    base = parse(
        FinetuneConfig, flags, prog="run_clue.py ... --", description="Flags of each run.", advice=ADVICE | GIVEN_BEFORE
    )
    folders, absent = find_folders(config, board)
    checkpoint, weights = pin_checkpoint(Path(config.pretrained_checkpoint))
    trials = [
        trial
        for task, folder in folders.items()
        for trial in trials_of(config, base, task, folder, checkpoint=checkpoint, weights=weights)
    ]
    slots = find_slots(config.jobs, config.processes)
    output = Path(config.output_dir)

    def finished(job: Job, metrics: dict[str, Any]) -> str:
        best = keep(config, [trial for trial in trials if trial.task == job.config.task.task])
        write_table(output, trials, absent, checkpoint)
        own = Scored(trial=best.trial, metrics=metrics)
        return f"{own.metric} {own.score:.4f} (best {best.score:.4f}, {best.trial.point})"

    for name in absent:
        print(f"left out: {name}, no folder of it in {config.data_dir}", flush=True)
    write_table(output, trials, absent, checkpoint)  # so that a folder that cannot be written shows at once
    failures = run_jobs([trial.job for trial in trials], slots, script, finished)
    print(f"\n{write_table(output, trials, absent, checkpoint)}\n{output / 'results.md'}", flush=True)
    rows = rows_of(trials)
    if rows and draw(rows, output / "results.png"):
        print(output / "results.png")
    elif rows:
        print("no plot: matplotlib is not installed (the extra quickstart has it)")
    best = [keep(config, [each.trial for each in row.trials]).trial for row in rows]
    if config.submission is not None:
        # weights that an earlier, wider grid did not keep are made again
        again = [trial.job for trial in best if not (trial.job.folder / BEST).is_dir()]
        if again:
            again = [dataclasses.replace(job, results=(METRICS, BEST)) for job in again]
            failures += run_jobs(again, slots, script, finished)
        predictions = [job for trial in best if (job := prediction(trial)) is not None]
        failures += run_jobs(predictions, slots, script, lambda job, _: ", ".join(job.results[1:]))
        predicted = [job for job in predictions if read_metrics(job) is not None]
        if predicted or not failures:
            submit(config, board, predicted)
    if failures:
        names = "".join(f"\n  {failure.job.name}" for failure in failures)
        raise JobError(f"{len(failures)} runs failed; the same command tries them again:{names}")


def find_folders(config: BenchmarkConfig, board: Board) -> tuple[dict[str, Path], list[str]]:
    """The data folder of each task, and the tasks without one. Raises `UserError` if there is none at all."""
    root = Path(config.data_dir)
    names = [find_task(name).name for name in config.tasks] or [result.task for result in board.results]
    found = {name: task_folder(root, name) for name in dict.fromkeys(names)}
    absent = [name for name, folder in found.items() if folder is None]
    there = {name: folder for name, folder in found.items() if folder is not None}
    if not there:
        raise UserError(f"--data-dir {root} has no folder of any of {', '.join(absent)}")
    return there, absent


def pin_checkpoint(path: Path) -> tuple[Path, str]:
    """The one checkpoint that every run starts from, and a hash of it: another may be saved beside it meanwhile."""
    folder = find_checkpoint(path, context=ParallelContext.single())
    if folder is not None:
        return folder, digest([folder / MANIFEST])  # which has the checksums of the others
    if not (path / "config.json").is_file():
        raise UserError(f"--pretrained-checkpoint {path} holds neither a checkpoint nor a Hugging Face model")
    return path, digest(sorted(file for file in path.iterdir() if file.is_file()))


def trials_of(
    config: BenchmarkConfig, base: FinetuneConfig, name: str, folder: Path, *, checkpoint: Path, weights: str
) -> list[Trial]:
    """All runs of a task. weights: the hash of the checkpoint. Raises `UserError` for wrong flags and missing files."""
    task, published = find_task(name), published_grid(name)
    grid = Grid(
        global_batch_sizes=config.global_batch_size or published.global_batch_sizes,
        lrs=config.lr or published.lrs,
        dropouts=config.dropout or published.dropouts,
    )
    task_config = dataclasses.replace(base.task, task=name, data_dir=str(folder))
    files = find_files(task_config, trained=True)
    data = digest([*files.train, *files.dev])
    trials = []
    for point in grid.points():
        for seed in dict.fromkeys(config.seeds):
            tuning = dataclasses.replace(
                base.tuning,
                global_batch_size=point.global_batch_size,
                lr=point.lr,
                hidden_dropout=point.dropout,
                attention_dropout=point.dropout,
                seed=seed,
            )
            settings = dataclasses.replace(
                base,
                task=dataclasses.replace(task_config, data_dir=""),
                source=dataclasses.replace(base.source, pretrained_checkpoint="", output_dir=""),
                tuning=tuning,
            )
            # neither places nor the layout change a number
            identity = {
                **{name: value for name, value in to_dict(settings).items() if name not in ("parallel", "logging")},
                "hyperparameters": to_dict(tuning.hyperparameters(task.defaults)),
                "checkpoint": weights,
                "data": data,
            }
            run = (
                f"batch{point.global_batch_size}-lr{point.lr:g}-dropout{point.dropout:g}"
                f"-seed{seed}-{short_hash(identity)}"
            )
            source = dataclasses.replace(
                base.source,
                pretrained_checkpoint=str(checkpoint),
                output_dir=str(Path(config.output_dir) / name / run),
            )
            job = Job(
                name=f"{name}, {point}, seed {seed}",
                config=dataclasses.replace(base, task=task_config, source=source, tuning=tuning),
                identity=identity,
            )
            job.config.check()
            trials.append(Trial(task=name, point=point, seed=seed, job=job))
    return trials


def finished_trials(trials: Sequence[Trial]) -> list[Scored]:
    """Those that have their results."""
    found = ((trial, read_metrics(trial.job)) for trial in trials)
    return [Scored(trial=trial, metrics=metrics) for trial, metrics in found if metrics is not None]


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """A row for each task that has a finished trial, in the order of the tasks."""
    scored = finished_trials(trials)
    names = dict.fromkeys(each.trial.task for each in scored)
    return [row_of([each for each in scored if each.trial.task == name]) for name in names]


def keep(config: BenchmarkConfig, trials: Sequence[Trial]) -> Scored:
    """The best of a task's finished trials, at least one; the weights of the others go, unless all are kept."""
    scored = finished_trials(trials)
    best = best_of(scored)
    for each in scored:
        if each is not best and config.keep_checkpoints == "best":
            shutil.rmtree(each.trial.job.folder / BEST, ignore_errors=True)
    return best


def write_table(output: Path, trials: Sequence[Trial], absent: Sequence[str], checkpoint: Path) -> str:
    """Write results.json and results.md of what is finished so far; the latter's text."""
    table = Table(
        rows=tuple(rows_of(trials)),
        checkpoint=str(checkpoint),
        unfinished=tuple(trial.job.name for trial in trials if read_metrics(trial.job) is None),
        absent=tuple(absent),
    )
    text = as_markdown(table)
    write_file(output / "results.json", json_text(as_json(table)).encode())
    write_file(output / "results.md", text.encode())
    return text


def prediction(trial: Trial) -> Job | None:
    """The run that predicts a task's test files by a trial's best weights; None if there are none."""
    config, folder = trial.job.config, trial.job.folder
    task, data_dir = find_task(trial.task), Path(config.task.data_dir)
    tests = official_tests(task, data_dir)
    if not tests:
        print(f"not in the submission: {trial.task}, there is no test file of it in {data_dir}", flush=True)
        return None
    source = ModelSourceConfig(
        pretrained_checkpoint=str(folder / BEST), eval_only=True, output_dir=str(folder / "predictions")
    )
    return Job(
        name=f"predictions of {trial.job.name}",
        config=dataclasses.replace(
            config, task=dataclasses.replace(config.task, train_file=(), predict=True), source=source
        ),
        identity={"trial": trial.job.identity, "data": digest(tests)},
        results=(METRICS, *(submission_name(task, path) for path in tests)),
    )


def submit(config: BenchmarkConfig, board: Board, jobs: Sequence[Job]) -> None:
    """Copy the predictions to --submission, pack those that the server reads, and check the archive.

    Raises `UserError` if nothing is there to be sent, and if the archive has mistakes.
    """
    folder = Path(str(config.submission))
    files = []
    for path in [job.folder / name for job in jobs for name in job.results[1:]]:
        write_file(folder / path.name, path.read_bytes())
        files.append(folder / path.name)
    sent = of_board(files, board)
    for path in files:
        if path not in sent:
            print(f"{path}: not a file that {board.name} reads, so not in the archive")
    if not sent:
        raise UserError(f"--submission {folder}: no predictions that {board.name} reads")
    day = datetime.date.today().strftime("%Y%m%d")
    archive = write_archive(sent, folder, f"submit_{config.team}_{day}.zip")
    print(archive, flush=True)
    check_archive(archive, board, Path(config.data_dir))


def check_archive(path: Path, board: Board, data_dir: Path | None) -> None:
    """Print what was checked. Raises `UserError` that names every finding."""
    report = validate_archive(path, board, data_dir)
    for note in report.notes:
        print(f"  {note}", flush=True)
    raise_problems([str(finding) for finding in report.findings])
    print(f"{path}: nothing wrong found for {board.name}")
