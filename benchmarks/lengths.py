"""Fine-tuning on short texts: batches of like length against the same loop with static padding, interleaved.

    python benchmarks/lengths.py                # about ten minutes on two cores

Texts are as long as those of TNEWS: 24 tokens on average, 5 to 60; their tokens are made up. The model has 12 layers of
width 256, batches 32 texts. Static padding gives the same code texts of 128 tokens in random order, as a tokenizer with
`padding="max_length"` does. Before anything is timed, the losses and gradient norms of the same batches with and
without padding are compared; in the end both ways train to the end a task that can be learnt: some tokens of a text
name its class.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import keep_memory_warm, machine, spread, write_results

from megatron.config import LoggingConfig, ModelConfig, ParallelConfig, PrecisionConfig
from megatron.data.tokenizer import load_tokenizer
from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import Optimizer
from megatron.tasks.batching import padding_ratio, training_batches
from megatron.tasks.config import FinetuneConfig, TuningConfig, optimizer_config
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.inputs import Inputs
from megatron.tasks.kinds.classification import TextExample
from megatron.tasks.loop import train, train_step
from megatron.tasks.model import build
from megatron.tasks.pretrained import Pretrained
from megatron.tasks.run import Run
from megatron.tasks.table import find_task
from megatron.tasks.task import Hyperparameters
from megatron.tasks.tuning.objective import Objective, new_objective
from megatron.tasks.window import new_window
from megatron.training.model import new_optimizer
from megatron.training.records import Recorder

RESULTS = Path(__file__).resolve().parent / "results" / "lengths.json"
LONGEST, BATCH, CLASSES = 128, 32, 15
PAD, CLS, SEP, FIRST = 0, 2, 3, 5
"""Ids of the made-up vocabulary: special tokens, a marker of each class from FIRST on, then all others."""
MODEL = ModelConfig(
    num_layers=12, hidden_size=256, num_attention_heads=4, ffn_hidden_size=1024, max_position_embeddings=LONGEST,
    vocab_size=21248,
)  # fmt: skip
LEARNING_RATE = 1e-3


class StaticPadding(Encoded):
    """All texts as long as the longest: batches are random ones, and every row has 128 tokens."""

    @property
    def lengths(self) -> np.ndarray:
        return np.full(self.num_rows, LONGEST)

    def batch(self, rows: np.ndarray, *, multiple: int = 1) -> TaskBatch:
        del multiple
        return super().batch(rows, multiple=LONGEST)


def made_up(rows: int, seed: int) -> Encoded:
    """Texts of random tokens; each is with a probability of 0.15 the marker of the text's class instead.

    So 3 texts of 100 have none, and nobody can know their class.
    """
    draw = np.random.default_rng(seed)
    lengths = np.clip(np.rint(draw.normal(24, 7, rows)), 5, 60).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = draw.integers(0, CLASSES, rows)
    tokens = draw.integers(FIRST + CLASSES, MODEL.vocab_size, offsets[-1], dtype=np.int32)
    tokens = np.where(draw.random(len(tokens)) < 0.15, np.repeat(FIRST + labels, lengths), tokens).astype(np.int32)
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = CLS, SEP
    return Encoded(tokens=tokens, offsets=offsets, first_lengths=lengths, labels=labels, pad_id=PAD, truncated=0)


def padded(encoded: Encoded) -> StaticPadding:
    """The same texts."""
    return StaticPadding(**{field.name: getattr(encoded, field.name) for field in fields(encoded)})


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A fine-tuning run without files."""

    run: Run
    objective: Objective
    optimizer: Optimizer

    def step(self, encoded: Encoded, rows: np.ndarray, rate: float) -> tuple[float, float]:
        """A step of the real loop: loss and norm of the gradient."""
        window = new_window(self.run.context)
        outcome = train_step(self.run, self.objective, self.optimizer, encoded, rows, 0, rate, window)
        return window.sums[0].item() / len(rows), outcome.grad_norm


def new_run(output: Path, bf16: bool, hyper: Hyperparameters) -> Run:
    """A run as `megatron.tasks.finetune` makes it, with random weights."""
    task = replace(find_task("tnews"), labels=tuple(str(number) for number in range(CLASSES)))
    vocabulary = output / "vocab.txt"
    vocabulary.write_text(
        "".join(f"{name}\n" for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(100)))),
        encoding="utf-8",
    )
    tokenizer = load_tokenizer("BertWordPieceCase", str(vocabulary))
    config = FinetuneConfig(precision=PrecisionConfig(bf16=bf16), logging=LoggingConfig(log_interval=50))
    context = ParallelContext.single()
    shape = replace(MODEL, hidden_dropout=hyper.hidden_dropout, attention_dropout=hyper.attention_dropout)
    return Run(
        config=config,
        context=context,
        task=task,
        hyper=hyper,
        pretrained=Pretrained(folder=output, model=MODEL, tokenizer=tokenizer, task=None),
        model=build(shape, ParallelConfig(), config.precision, context, head="sequence", num_outputs=CLASSES, seed=1),
        recorder=Recorder(config.logging, {}, is_main=True, step=0),
        output=output,
    )


def new_trainer(output: Path, bf16: bool, dropout: float) -> Trainer:
    """A run and its optimizer."""
    run = new_run(output, bf16, Hyperparameters(hidden_dropout=dropout, attention_dropout=dropout))
    optimizer = new_optimizer(
        run.model.chunks,
        optimizer_config(run.config.tuning, run.hyper),
        run.config.precision,
        run.config.parallel,
        run.context,
    )
    return Trainer(run=run, objective=new_objective(TuningConfig(), run.task, made_up(2, 0)), optimizer=optimizer)


def equal_steps(folder: Path, encoded: Encoded) -> dict[str, float]:
    """Largest relative differences of losses and gradient norms of three fp32 steps without dropout."""
    plain, static = (new_trainer(folder, False, 0.0) for _ in range(2))
    batches = training_batches(encoded.lengths, batch_size=BATCH, seed=1, epoch=0)[:3]
    found = [(plain.step(encoded, rows, 1e-4), static.step(padded(encoded), rows, 1e-4)) for rows in batches]
    differences = np.array([[abs(a - b) / abs(b) for a, b in zip(*pair, strict=True)] for pair in found])
    if differences.max() > 1e-5:
        raise SystemExit(f"padding changes the step: relative differences of loss and gradient norm {differences}")
    return {"loss": float(differences[:, 0].max()), "gradient_norm": float(differences[:, 1].max())}


def epoch_times(folder: Path, encoded: Encoded, bf16: bool, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch both ways. Static batches all cost the same, so a fifth of them stands for all."""
    trainer = new_trainer(folder, bf16, 0.1)
    static = padded(encoded)
    batches = training_batches(encoded.lengths, batch_size=BATCH, seed=1, epoch=0)
    static_batches = training_batches(static.lengths, batch_size=BATCH, seed=1, epoch=0)
    seconds: dict[str, list[float]] = {"like length": [], "static 128": []}

    def timed(data: Encoded, some: list[np.ndarray]) -> float:
        started = time.perf_counter()
        for rows in some:
            trainer.step(data, rows, 1e-5)
        return time.perf_counter() - started

    for number in range(rounds + 1):
        ours = theirs = 0.0
        for first in range(0, len(batches), 10):
            ours += timed(encoded, batches[first : first + 10])
            theirs += 5 * timed(static, static_batches[first : first + 2])
        if number:  # the first is to warm up
            seconds["like length"].append(ours)
            seconds["static 128"].append(theirs)
            print(f"{'bf16' if bf16 else 'fp32'} epoch {ours:.1f} s, static {theirs:.1f} s: {theirs / ours:.2f}x")
    spreads = {way: spread(found) for way, found in seconds.items()}
    return {"seconds_of_an_epoch": spreads, "ratio": spreads["static 128"]["median"] / spreads["like length"]["median"]}


def accuracies(folder: Path, rows: int, epochs: int, bf16: bool) -> dict[str, Any]:
    """Dev accuracy and seconds of whole runs of the real loop, both ways."""
    hyper = Hyperparameters(epochs=epochs, global_batch_size=BATCH, lr=LEARNING_RATE, seq_length=LONGEST)
    found: dict[str, Any] = {}
    ways: dict[str, Callable[[Encoded], Encoded]] = {"like length": lambda encoded: encoded, "static 128": padded}
    for way, change in ways.items():
        with tempfile.TemporaryDirectory(dir=folder) as output:
            run = new_run(Path(output), bf16, hyper)
            train_set, dev = change(made_up(rows, 1)), change(made_up(512, 2))
            examples = [TextExample(("",), int(label), number) for number, label in enumerate(dev.labels)]
            dev_set = Inputs(paths=(), examples=examples, encoded=dev)
            done = train(run, new_objective(TuningConfig(), run.task, train_set), train_set, dev_set)
        found[way] = {"accuracy": done.last["accuracy"], "loss": done.last["loss"], "seconds": done.seconds}
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All results."""
    encoded = made_up(options.batches * BATCH, 0)
    results: dict[str, Any] = {
        "machine": machine(),
        "texts": encoded.num_rows,
        "mean_length": float(encoded.lengths.mean()),
        "padded_over_real_tokens": {
            "like length": padding_ratio(
                encoded.lengths, training_batches(encoded.lengths, batch_size=BATCH, seed=1, epoch=0)
            ),
            "static 128": LONGEST / float(encoded.lengths.mean()),
        },
        "relative_differences": equal_steps(folder, encoded),
        "formats": {name: epoch_times(folder, encoded, name == "bf16", options.rounds) for name in options.formats},
    }
    results["learnt"] = accuracies(folder, options.learnt_batches * BATCH, options.epochs, "bf16" in options.formats)
    return results


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=50, help="of a timed epoch")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over them; two at least")
    parser.add_argument("--formats", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--learnt-batches", type=int, default=100, help="of an epoch of the task that is learnt")
    parser.add_argument("--epochs", type=int, default=4, help="of the task that is learnt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_memory_warm()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_results(options.output, measure(options, Path(folder)))


if __name__ == "__main__":
    main()
