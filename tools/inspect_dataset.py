"""Look into a corpus: its figures, its samples as the model sees them, and the documents behind a step of training.

Takes the flags of pretrain_bert.py; `--config SAVE/config.json` has those of a run.

    python tools/inspect_dataset.py --data-path corpus_text_sentence                       # figures
    python tools/inspect_dataset.py --config SAVE/config.json --sample 17                  # a sample with its masks
    python tools/inspect_dataset.py --config SAVE/config.json --step 31000                 # the text behind a step
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from megatron.arguments import parse
from megatron.config import (
    CheckpointConfig,
    DataConfig,
    DryRunConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
    run_among,
)
from megatron.data.batches import Split, open_splits
from megatron.data.blend import parse_data_path
from megatron.data.indexed import CHUNK, IndexedDataset
from megatron.data.provenance import read_sources, source_of
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.errors import UserError, main_guard, raise_problems
from megatron.megatron_flags import ADVICE
from megatron.optimizer.schedule import global_batch_size
from megatron.presets import PRESETS

BAR = 40
"""Characters of the longest bar of a histogram."""


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """What to look at; without any of these, the figures of the corpora."""

    sample: int | None = None
    """Number of a sample within --sample-split."""
    samples: int = 1
    """How many samples from --sample on."""
    sample_split: Literal["train", "valid", "test"] = "train"
    """Split of --sample."""
    step: int | None = None
    """Step of training whose documents to name; with --metrics-file, the step of one of its rows."""

    def problems(self) -> list[str]:
        """Violations of the rules of these options, as messages."""
        found = ["--sample and --step exclude each other"] if self.sample is not None and self.step is not None else []
        if (self.sample or 0) < 0 or self.samples < 1:
            found.append("--sample must not be negative, and --samples must be at least 1")
        if self.step is not None and self.step < 1:
            found.append("--step must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Look into a corpus."""

    look: LookConfig = field(default_factory=LookConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    dry_run: DryRunConfig = field(default_factory=DryRunConfig)


def corpus_lines(prefix: str) -> Iterator[str]:
    """The figures of one corpus."""
    dataset = IndexedDataset(prefix)
    sizes, in_documents = dataset.sizes, np.diff(dataset.document_index)
    yield (
        f"{prefix}: {dataset.num_documents:,} documents, {dataset.num_sentences:,} sentences, "
        f"{dataset.num_tokens:,} tokens of {dataset.dtype.itemsize} bytes, largest id {dataset.largest_token:,}"
    )
    if dataset.words is None:
        yield "words: no boundaries stored; the vocabulary's ## says where words go on"
    else:
        words = sum(
            int(np.bitwise_count(dataset.words[at : at + CHUNK]).sum()) for at in range(0, len(dataset.words), CHUNK)
        )
        yield f"words: {words:,}, {dataset.num_tokens / max(words, 1):.3f} tokens each"
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    tokens = np.diff(starts[dataset.document_index])
    yield from histogram("tokens of a sentence", sizes)
    yield from histogram("sentences of a document", in_documents)
    yield from histogram("tokens of a document", tokens)


def histogram(name: str, values: np.ndarray) -> Iterator[str]:
    """Counts of whole numbers by powers of two, as text."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    yield (
        f"{name}: mean {values.mean():.1f}, median {median:.0f}, 5 % below {low:.0f}, 5 % above {high:.0f}, "
        f"longest {values.max():,}"
    )
    bins = np.bincount(np.ceil(np.log2(np.maximum(values, 1) + 1)).astype(np.int64) * (values > 0))
    for power in range(np.flatnonzero(bins)[0], len(bins)):
        span = "0" if power == 0 else f"{2 ** (power - 1):,} to {2**power - 1:,}"
        yield f"  {span:>24} {bins[power]:>12,} {'#' * round(BAR * bins[power] / bins.max())}".rstrip()


def sample_lines(split: Split, number: int, tokenizer: Tokenizer) -> Iterator[str]:
    """A sample as the model sees it, and what it has to predict."""
    batch = split.assemble(number, 1)
    shown = [tokenizer.tokens[token] for token in batch.tokens[0, : batch.lengths[0]]]
    label = f", label {batch.sop_labels[0]}" if (batch.token_types[0] == 1).any() else ""
    yield (
        f"sample {number} of {split.name}: {batch.lengths[0]} tokens, {len(batch.masked_labels)} of them to predict"
        f"{label}"
    )
    yield from (f"  {line}" for line in document_lines(split, number))
    yield f"  {' '.join(shown)}"
    predictions = zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True)
    yield "  " + ", ".join(f"{at}: {tokenizer.tokens[token]} as {shown[at]}" for at, token in predictions)


def document_lines(split: Split, number: int) -> Iterator[str]:
    """The documents of a sample and where they came from."""
    for prefix, document in split.documents_of(number):
        origin = ""
        if read_sources(prefix) is not None:
            path, line = source_of(prefix, document)
            origin = f": {path}, line {line}"
        yield f"document {document} of {prefix}{origin}"


def samples_of_step(config: InspectConfig) -> range:
    """The samples of a step of training.

    Raises `UserError` where the metrics file has no such step, or the flags do not say how large the steps were.
    """
    step = config.look.step
    assert step is not None
    if config.logging.metrics_file is not None:
        row = _row(Path(config.logging.metrics_file), step)
        return range(row["consumed_samples"] - row["global_batch_size"], row["consumed_samples"])
    if config.training.global_batch_size < 1:
        raise UserError(
            "--step needs the size of the steps: give --global-batch-size, the run's --config SAVE/config.json, or its "
            "--metrics-file"
        )
    run, consumed = run_among(config), 0
    for _ in range(step - 1):
        consumed += global_batch_size(run, consumed)
    return range(consumed, consumed + global_batch_size(run, consumed))


def _row(path: Path, step: int) -> dict[str, int]:
    """The training row of a step in a metrics file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--metrics-file {path}: {getattr(error, 'strerror', None) or error}") from None
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["split"] == "train":
                if row["step"] == step:
                    return {name: int(row[name]) for name in ("consumed_samples", "global_batch_size")}
                steps.append(int(row["step"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: not a record of a run") from None
    nearest = f"; the nearest is {min(steps, key=lambda other: abs(other - step))}" if steps else ""
    raise UserError(
        f"{path} has no training row of step {step}{nearest}; without --metrics-file the flags of the run say which "
        "samples a step had"
    )


def inspect(config: InspectConfig) -> Iterator[str]:
    """The text that was asked for. Raises `UserError` for whatever is wrong with options or files."""
    look, objective = config.look, run_among(config).sentence_objective
    data = dataclasses.replace(config.data, sentence_objective=objective)
    wanted = look.sample is not None or look.step is not None
    problems = look.problems() + (data.problems() if wanted else [])
    paths = (data.data_path, data.train_data_path, data.valid_data_path, data.test_data_path)
    if not wanted and not any(paths):
        problems.append("--data-path is required")
    raise_problems(problems)
    if not wanted:
        for prefix in dict.fromkeys(prefix for path in paths if path for prefix in parse_data_path(path)[1]):
            yield from corpus_lines(prefix)
        return
    tokenizer = load_tokenizer(data.tokenizer_type, data.vocab_file, data.tokenizer_model)
    splits = open_splits(data, seed=config.training.seed, tokenizer=tokenizer)
    name = "train" if look.step is not None else look.sample_split
    if name not in splits:
        raise UserError(f"there is no {name} split: see --split")
    if look.sample is not None:
        for number in range(look.sample, look.sample + look.samples):
            yield from sample_lines(splits[name], number, tokenizer)
        return
    samples = samples_of_step(config)
    yield f"step {look.step}: samples {samples.start} to {samples.stop - 1}"
    for number in samples:
        for line in document_lines(splits[name], number):
            yield f"sample {number}: {line}"


def main() -> None:
    config = parse(
        InspectConfig,
        prog="inspect_dataset.py",
        description="Look into a corpus: figures, samples as the model sees them, documents behind a step of training.",
        presets=PRESETS,
        advice=ADVICE,
    )
    for line in inspect(config):
        print(line)


if __name__ == "__main__":
    main_guard(main)
