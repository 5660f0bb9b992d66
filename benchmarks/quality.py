"""Time to quality: pre-training on real text, ours against a plain Hugging Face loop over the same samples.

    python benchmarks/quality.py --input corpus --folder runs/quality    # 25 minutes on two cores

The model is roberta-tiny-clue, a step 32 samples of 128 tokens. Vocabulary and indexed files are made in the folder
first and kept. All runs take the same samples in the same order, from the same initial weights of a seed, with the same
schedule; each draws masks and dropout of its own. The runs train in turn, a few steps at a time, and are evaluated on
the same masked samples in between; seconds are those of the training steps alone, data loading included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import keep_memory_warm, machine, write_results
from quality_peer import evaluation_loss, same_model, training, unmasked_samples

from megatron.config import DataConfig, OptimizerConfig, PrecisionConfig, PretrainConfig, TrainingConfig
from megatron.config.model import with_vocabulary
from megatron.data.batches import Batch, Split, evaluation_batches, open_splits, step_batches
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.mpu.context import ParallelContext
from megatron.optimizer.schedule import schedule_of
from megatron.presets import PRESETS
from megatron.training.model import build, new_optimizer
from megatron.training.step import evaluation_sums, train_step

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
BATCH, SEQUENCE, EVALUATED = 32, 128, 256
TOKENIZER = "BertWordPieceLowerCase"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A run that is under way. points: steps, seconds of training and evaluation loss (nats), one after the other."""

    name: str
    seed: int
    advance: Callable[[int], None]
    evaluate: Callable[[], float]
    points: list[tuple[int, float, float]] = field(default_factory=list)


def prepare(source: Path, folder: Path) -> tuple[str, Path]:
    """The prefix of the indexed corpus and its vocabulary, made if they are not there."""
    vocabulary, prefix = folder / "vocab.txt", folder / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    size = str(PRESETS["roberta-tiny-clue"].vocab_size)
    made = {
        vocabulary: ["build_vocab.py", "--output", str(vocabulary), "--vocab-size", size, "--lower-case"],
        folder / "corpus_text_sentence.idx": [
            "preprocess_data.py", "--output-prefix", str(prefix), "--tokenizer-type", TOKENIZER,
            "--vocab-file", str(vocabulary), "--split-sentences", "--segmenter", "jieba",
        ],
    }  # fmt: skip
    for path, (script, *options) in made.items():
        if not path.is_file():
            subprocess.run([sys.executable, str(ROOT / "tools" / script), "--input", str(source), *options], check=True)
    return f"{prefix}_text_sentence", vocabulary


def configuration(
    prefix: str, vocabulary: Path, tokenizer: Tokenizer, steps: int, seed: int, bf16: bool
) -> PretrainConfig:
    """What `pretrain_bert.py --preset roberta-tiny-clue --seq-length 128 ...` makes of its flags."""
    return PretrainConfig(
        model=with_vocabulary(PRESETS["roberta-tiny-clue"], tokenizer.vocab_size),
        # One word at a time, as the collators that one finds.
        data=DataConfig(
            data_path=(prefix,), split="99,1,0", seq_length=SEQUENCE, max_ngrams=1, tokenizer_type=TOKENIZER,
            vocab_file=str(vocabulary),
        ),
        optimizer=OptimizerConfig(lr=1e-3, lr_warmup_fraction=0.1),
        precision=PrecisionConfig(bf16=bf16),
        training=TrainingConfig(micro_batch_size=BATCH, train_iters=steps, seed=seed),
    ).resolved(world_size=1)  # fmt: skip


def runners(config: PretrainConfig, split: Split, evaluated: Sequence[Batch], tokenizer: Tokenizer) -> Iterator[Runner]:
    """The peer and ours, with the same initial weights."""
    context, seed, bf16 = ParallelContext.single(), config.training.seed, config.precision.bf16
    schedule, samples = schedule_of(config), (config.training.train_iters or 0) * BATCH
    model = build(config.model, config.parallel, config.precision, seed, context)
    theirs = same_model(model.chunks[0], config)
    rates = (schedule.learning_rate(BATCH * step) for step in count())
    # Its dropout draws from torch's only generator, in turn with that of the other runs.
    torch.manual_seed(seed)
    yield Runner(
        name="Hugging Face, bf16 autocast" if bf16 else "Hugging Face, fp32",
        seed=seed,
        advance=training(theirs, unmasked_samples(split, samples, tokenizer), tokenizer, config, rates, autocast=bf16),
        evaluate=lambda: evaluation_loss(theirs, evaluated, autocast=bf16),
    )
    optimizer = new_optimizer(model.chunks, config.optimizer, config.precision, config.parallel, context)
    batches = step_batches(
        split, global_batch_size=lambda consumed: BATCH, consumed=0, micro_batch_size=BATCH, rank=0, size=1,
        num_workers=config.data.num_workers,
    )  # fmt: skip
    own_rates = (schedule.learning_rate(BATCH * step) for step in count())

    def advance(steps: int) -> None:
        for batch, rate in islice(zip(batches, own_rates, strict=False), steps):
            train_step(model, optimizer, batch, rate, seed=seed)

    def evaluate() -> float:
        masked = sum(len(batch.masked_positions) for batch in evaluated)
        return evaluation_sums(model, evaluated)[0].item() / masked

    yield Runner(name="ours, bf16" if bf16 else "ours, fp32", seed=seed, advance=advance, evaluate=evaluate)


def check_start(running: Sequence[Runner]) -> None:
    """Whether the two of each pair begin with the same loss: their models are the same."""
    for theirs, ours in zip(running[::2], running[1::2], strict=True):
        tolerance = 2e-3 if _bf16(ours) else 1e-5
        found, expected = ours.points[0][2], theirs.points[0][2]
        if not abs(found - expected) <= tolerance * expected:
            raise SystemExit(
                f"the models are not the same: before the first step the loss of {ours.name} is {found:.7f}, that of "
                f"{theirs.name} {expected:.7f}"
            )


def race(running: Sequence[Runner], steps: int, interval: int) -> None:
    """Train all runs, in pairs of the peer and ours, in turn, `interval` steps at a time."""
    for runner in running:
        runner.points.append((0, 0.0, runner.evaluate()))
    check_start(running)
    started = time.perf_counter()
    for done in range(interval, steps + 1, interval):
        for runner in running:
            begin = time.perf_counter()
            runner.advance(interval)
            seconds = runner.points[-1][1] + time.perf_counter() - begin
            runner.points.append((done, seconds, runner.evaluate()))
        shown = "; ".join(f"{r.name} {r.seed}: {r.points[-1][2]:.3f} in {r.points[-1][1]:.0f} s" for r in running)
        left = (time.perf_counter() - started) / done * (steps - done)
        print(f"step {done}/{steps}, {left:.0f} s left | {shown}", flush=True)


def comparison(running: Sequence[Runner], bf16: bool) -> dict[str, float] | None:
    """Ours against the peer of one number format, of the last quarter of the evaluations; None with a single seed.

    gap: the difference between the mean losses of the seeds. noise: the largest difference between the two seeds of
    one side. Both are means of absolute values over those evaluations.
    """
    sides = [
        np.array([[loss for _, _, loss in r.points] for r in running if r.name.startswith(side) and bf16 == _bf16(r)])
        for side in ("ours", "Hugging")
    ]
    if any(len(side) < 2 for side in sides):
        return None
    last = -(-sides[0].shape[1] // 4)
    ours, theirs = (side[:, -last:] for side in sides)
    return {
        "gap": float(np.abs(ours.mean(0) - theirs.mean(0)).mean()),
        "noise": max(float(np.ptp(side, axis=0).mean()) for side in (ours, theirs)),
    }


def _bf16(runner: Runner) -> bool:
    return "bf16" in runner.name


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The curves of all runs, and what they come to."""
    prefix, vocabulary = prepare(options.input, options.folder)
    tokenizer = load_tokenizer(TOKENIZER, str(vocabulary))
    running: list[Runner] = []
    evaluated: list[Batch] = []
    for name in options.formats:
        for seed in options.seeds if name == "bf16" else options.seeds[:1]:
            config = configuration(prefix, vocabulary, tokenizer, options.steps, seed, name == "bf16")
            splits = open_splits(config.data, seed=seed, tokenizer=tokenizer)
            # Documents are divided without the seed, so nothing of it is trained on in a run of another.
            evaluated = evaluated or list(
                evaluation_batches(splits["valid"], samples=EVALUATED, micro_batch_size=BATCH, rank=0, size=1)
            )
            running += runners(config, splits["train"], evaluated, tokenizer)
    race(running, options.steps, options.interval)
    seconds: dict[str, list[float]] = {}
    for runner in running:
        seconds.setdefault(runner.name, []).append(runner.points[-1][1])
    return {
        "machine": machine("transformers", "jieba"),
        "steps": options.steps,
        "batch": [BATCH, SEQUENCE],
        "evaluated_samples": EVALUATED,
        "runs": [
            {
                "name": runner.name,
                "seed": runner.seed,
                "points": [[step, round(at, 2), round(loss, 4)] for step, at, loss in runner.points],
            }
            for runner in running
        ],
        "seconds": {name: sum(found) / len(found) for name, found in seconds.items()},
        "agreement": {name: found for name in options.formats if (found := comparison(running, name == "bf16"))},
    }


def main() -> None:
    """Measure and write; `benchmarks/render.py` draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="text, as tools/preprocess_data.py takes it")
    parser.add_argument("--folder", type=Path, required=True, help="for vocabulary and indexed files")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--interval", type=int, default=25, help="steps from one evaluation to the next")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="fp32 takes the first only")
    parser.add_argument("--formats", nargs="+", choices=["fp32", "bf16"], default=["bf16", "fp32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.steps % options.interval:
        parser.error("--steps must be a multiple of --interval")
    keep_memory_warm()
    torch.set_num_threads(options.threads)
    write_results(options.output, measure(options))


if __name__ == "__main__":
    main()
