"""tools/preprocess_data.py as a user runs it: one worker against two, wall time, interleaved rounds.

    python benchmarks/preprocess_workers.py --input corpus/ --vocab-file vocab.txt     # repeats the text to 600 MB

Times are of whole commands, with the flushing of shards and the joining. They hold the start of Python and of the
workers too, which does not grow with the text: it is measured with a small input, and ratios are with and without it.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megatron.data.corpus import find_inputs, read_blocks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "preprocess_workers.json"


def make_input(paths: list[str], output: Path, megabytes: float) -> None:
    """All lines of the inputs, again and again, to so many megabytes."""
    with output.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            for block in read_blocks(paths):
                file.writelines(line for line in block.lines if line is not None)


def run(text: Path, vocab: str, folder: Path, workers: int) -> float:
    """Seconds of the command."""
    command = [
        sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(text), "--output-prefix",
        str(folder / f"by{workers}" / "x"), "--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocab,
        "--split-sentences", "--segmenter", "jieba", "--workers", str(workers),
    ]  # fmt: skip
    shutil.rmtree(folder / f"by{workers}", ignore_errors=True)
    (folder / f"by{workers}").mkdir()
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="files or folders, as of the tool")
    parser.add_argument("--vocab-file", required=True)
    parser.add_argument("--megabytes", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    starts: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        small = folder / "small.jsonl"
        paths = find_inputs(options.input)
        make_input(paths, text, options.megabytes)
        make_input(paths[:1], small, 0.001)
        size = text.stat().st_size / 1e6
        for _ in range(options.rounds):
            for workers, times in seconds.items():
                starts[workers].append(run(small, options.vocab_file, folder, workers))
                times.append(run(text, options.vocab_file, folder, workers))
        for path in sorted((folder / "by1").iterdir()):
            if path.suffix != ".json" and not filecmp.cmp(path, folder / "by2" / path.name, shallow=False):
                raise RuntimeError(f"{path.name} depends on the number of workers")
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    for workers, median in medians.items():
        print(f"{workers} workers: {median:.2f} s, {size / median:.1f} MB/s {[round(s, 2) for s in seconds[workers]]}")
    work = {workers: median - statistics.median(starts[workers]) for workers, median in medians.items()}
    print(f"two against one: {medians[1] / medians[2]:.2f}x; without the start, {work[1] / work[2]:.2f}x")
    found = {
        "machine": {"cores": os.cpu_count(), "machine": platform.machine()},
        "megabytes": round(size, 1),
        "seconds": {str(workers): [round(s, 3) for s in times] for workers, times in seconds.items()},
        "start_seconds": {str(workers): [round(s, 3) for s in times] for workers, times in starts.items()},
        "ratio": round(medians[1] / medians[2], 3),
        "ratio_without_start": round(work[1] / work[2], 3),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
