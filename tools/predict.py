#!/usr/bin/env python
"""Predict with a fine-tuned model: a file, standard input, or what is typed.

    python tools/predict.py --load OUTPUT/best --input test.jsonl --output predictions.jsonl
    python tools/predict.py --load OUTPUT/best

A row has the keys of the task (docs/prediction.md), or is {"texts": [...]}; it comes back with its "prediction" added.
Without --input every line that is typed is a text, with a tab between two, or a row as JSON; Ctrl-D ends.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from megatron.arguments import parse
from megatron.errors import JobError, UserError, main_guard
from megatron.files import durable_file, flush_folder
from megatron.tasks.predictor import Item, Predictor, load_predictor
from megatron.tasks.readers import STANDARD_INPUT, Bad, Row, read_rows, refuse
from megatron.training.records import clock

INTERVAL = 5.0
"""Seconds between two lines of progress."""
SHOWN = 5
"""Probabilities shown of a text that was typed."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predictions of a fine-tuned model."""

    load: str
    """Fine-tuned checkpoint (OUTPUT/best of a run), or a Hugging Face folder with the head of a task."""
    input: str | None = None
    """Rows to predict: .jsonl, .tsv or .csv, also as .gz, or - for JSON lines from standard input [default: ask]."""
    output: str = "-"
    """File of JSON lines to write, .gz to compress it; - for standard output."""
    skip_bad_lines: bool = False
    """Leave out rows that cannot be predicted, and count them, instead of refusing the input."""
    batch_size: int = 64
    """Rows that go through the model at a time."""
    device: str | None = None
    """cpu, cuda, cuda:1, ... [default: a GPU where there is one]."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the model."""


def main() -> None:
    """Predict as the flags say."""
    config = parse(PredictConfig, prog="predict.py", description=str(__doc__))
    if config.input is None and config.output != "-":
        raise UserError("--output needs --input")
    if config.input not in (None, "-") and not Path(str(config.input)).is_file():
        raise UserError(f"--input {config.input} is not a file")
    predictor = load_predictor(config.load, device=config.device, dtype=config.dtype, batch_size=config.batch_size)
    if config.input is None:
        ask(predictor)
        return
    rows, skipped = predict_file(predictor, Path(config.input), config.output, skip=config.skip_bad_lines)
    left_out = f", {skipped} bad lines left out" if skipped else ""
    print(f"{rows} predictions{left_out}" + ("" if config.output == "-" else f": {config.output}"), file=sys.stderr)


def ask(predictor: Predictor) -> None:
    """Predict line after line, until the end of standard input or Ctrl-C."""
    prompt = ""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (arrow keys and history)
        texts = " <tab> ".join(predictor.task.text_columns) or "text"
        print(f"{predictor.task.name}: type {texts}, or a row as JSON; Ctrl-D ends", file=sys.stderr)
        prompt = "> "
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            line = input(prompt)
            if not line.strip():
                continue
            try:
                (prediction,) = predictor([typed_item(line)])
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            else:
                print(json.dumps(likeliest(prediction), ensure_ascii=False), flush=True)
    if prompt:
        print()


def typed_item(line: str) -> Item:
    """A line as a row where it is a JSON object, else as its texts."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(line)
        if isinstance(values, dict):
            return values
    return line.split("\t")


def likeliest(prediction: dict[str, Any]) -> dict[str, Any]:
    """A prediction with the best of its probabilities, rounded."""
    probabilities = prediction.get("probabilities")
    if not isinstance(probabilities, dict):
        return prediction
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:SHOWN]
    return {**prediction, "probabilities": {label: round(probabilities[label], 4) for label in best}}


def predict_file(predictor: Predictor, path: Path, output: str, *, skip: bool) -> tuple[int, int]:
    """Predict the rows of a file. Returns how many, and how many bad lines were left out.

    Rows of a file are all looked at before the first is predicted. Raises `UserError` naming file and line.
    """
    skipped = 0

    def bad(error: UserError) -> None:
        nonlocal skipped
        skipped += 1
        print(f"left out: {error}", file=sys.stderr)

    total = None
    with new_output(output) as file:
        if path != STANDARD_INPUT:
            total = sum(1 for _ in examples_of(predictor, path, bad if skip else refuse))
        again: Bad = refuse if not skip else bad if total is None else lambda error: None
        pairs = examples_of(predictor, path, again)
        done, started = 0, time.monotonic()
        printed = started
        while chunk := list(itertools.islice(pairs, predictor.chunk)):
            predictions = predictor.predict([example for _, example in chunk])
            for (row, _), prediction in zip(chunk, predictions, strict=True):
                file.write(json_line({**row.values, "prediction": prediction}))
            file.flush()
            done, now = done + len(chunk), time.monotonic()
            if now - printed >= INTERVAL:
                printed = now
                print(progress_line(done, total, now - started), file=sys.stderr, flush=True)
    return done, skipped


def json_line(values: dict[str, Any]) -> bytes:
    """Values as a line of JSON; plain ASCII where a text holds what UTF-8 cannot write (half a surrogate pair)."""
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(values).encode() + b"\n"


def examples_of(predictor: Predictor, path: Path, bad: Bad) -> Iterator[tuple[Row, Any]]:
    """Rows of a file and their examples."""
    for row in read_rows(path, bad):
        try:
            example = predictor.parse(row)
        except UserError as error:
            bad(error)
        else:
            yield row, example


def progress_line(done: int, total: int | None, seconds: float) -> str:
    """Rows, rate and, where the number of all is known, the time left."""
    rate = done / seconds
    if total is None:
        return f"{done:,} rows | {rate:,.1f} rows/s"
    return f"{done:,} of {total:,} rows | {rate:,.1f} rows/s | ETA {clock((total - done) / rate)}"


@contextlib.contextmanager
def new_output(name: str) -> Iterator[BinaryIO]:
    """A file that appears under its name when all is written, compressed if that ends with .gz; or standard output."""
    if name == "-":
        try:
            yield sys.stdout.buffer
        except BrokenPipeError:  # whoever read it has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise JobError("standard output was closed before all was written") from None
        return
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--output {path} is a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with durable_file(temporary) as file:
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as compressed:
                    yield cast(BinaryIO, compressed)
            else:
                yield file
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


if __name__ == "__main__":
    main_guard(main)
