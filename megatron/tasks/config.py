"""Every option of fine-tuning, once. Flags and help texts are derived from these dataclasses.

Names are Megatron-LM's where it has them.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.config import LoggingConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.errors import raise_problems
from megatron.tasks.sets.clue import OWN_TEXTS
from megatron.tasks.task import Hyperparameters
from megatron.tasks.tuning.class_weights import BALANCED, numbers_of

ADVICE = {
    "batch-size": "use --global-batch-size (samples of a step over all processes)",
    "learning-rate": "use --lr",
    "max-length": "use --seq-length",
    "max-seq-length": "use --seq-length",
    "warmup": "use --lr-warmup-fraction",
    "load": "use --pretrained-checkpoint",
    "save": "use --output-dir",
    "train-data": "use --data-dir, and --train-file for a file of another name",
    "valid-data": "use --data-dir, and --dev-file for a file of another name",
}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task and its files."""

    task: str = ""
    """A task of CLUE or its like (docs/tasks.md lists them all), or one of your own files: classification of one
    or two texts, or tagging of entities."""
    data_dir: str = ""
    """Folder of the task's files under their official names (train.json, dev.json, test.json), also as .gz."""
    split: Literal["0", "1", "2", "3", "4", "few_all"] | None = None
    """FewCLUE: train_SPLIT.json and dev_SPLIT.json in --data-dir [default: 0]."""
    prompt: bool = False
    """FewCLUE: fine-tune the masked-word head to fill the blanks of the task's pattern, instead of a new head."""
    zero_shot: bool = False
    """FewCLUE, ZeroCLUE: evaluate and predict by the task's pattern without any training."""
    train_file: tuple[str, ...] = ()
    """Training files of other names, in --data-dir, or with their paths."""
    dev_file: tuple[str, ...] = ()
    """Dev files of other names."""
    test_file: str | None = None
    """Test file of another name."""
    predict: bool = False
    """Write the submission file of each test file to --output-dir."""
    labels: tuple[str, ...] = ()
    """classification: the labels [default: those of the training file, sorted]."""
    text_columns: tuple[str, ...] = ()
    """classification: the one or two columns of text [default: all but the label's and id]."""
    label_column: str = "label"
    """classification: the column of the label."""
    version_2_with_negative: bool = False
    """squad: SQuAD 2.0, whose questions may have no answer; the same as --task squad2."""


@dataclass(frozen=True, kw_only=True)
class ModelSourceConfig:
    """The model to start from and the folder of the results."""

    pretrained_checkpoint: str = ""
    """A checkpoint folder of ours or a Hugging Face folder: shape, weights and vocabulary."""
    from_scratch: bool = False
    """Take only shape and vocabulary from --pretrained-checkpoint; draw the weights at random."""
    eval_only: bool = False
    """Do not train: --pretrained-checkpoint is a fine-tuned checkpoint (OUTPUT/best of a run) to evaluate."""
    output_dir: str = ""
    """Folder for best/ (the checkpoint best on dev), dev_metrics.json, metrics.jsonl, submission files, and, when all
    is done, summary.json."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Hyper-parameters of fine-tuning. Those without a value are the task's own, printed at the start."""

    epochs: int | None = None
    """Passes over the training file."""
    global_batch_size: int | None = None
    """Samples of one step over all processes."""
    lr: float | None = None
    """Peak learning rate."""
    lr_warmup_fraction: float | None = None
    """Warm-up as a share of the run."""
    weight_decay: float | None = None
    """Decoupled weight decay; none on biases and LayerNorms."""
    seq_length: int | None = None
    """Longest input in tokens, [CLS] and [SEP] included; longer ones are cut."""
    hidden_dropout: float | None = None
    """Dropout of embeddings, block outputs and the head's input."""
    attention_dropout: float | None = None
    """Dropout of attention probabilities."""
    lr_decay_style: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the decay after warm-up."""
    clip_grad: float = 1.0
    """Largest norm of the whole gradient; 0 for no clipping."""
    micro_batch_size: int | None = None
    """Samples that one process takes through the model at a time, whose gradients are accumulated [default: its whole
    part of a batch]."""
    eval_interval: int | None = None
    """Steps between evaluations on the dev file [default: the end of each epoch]."""
    early_stopping: int | None = None
    """Stop after so many evaluations in a row without a better score."""
    keep_last_checkpoints: int | None = None
    """Keep the weights of the last so many evaluations in OUTPUT/last, besides OUTPUT/best."""
    error_report: bool = False
    """Write what the best weights get wrong in the dev file to OUTPUT/errors.jsonl, and OUTPUT/confusion.tsv."""
    class_weights: str | None = None
    """classification, tagging: a weight for each class in the loss, 1,2,0.5 in the order of the labels, or balanced:
    inverse to their frequencies in the training file."""
    freeze_layers: int | None = None
    """Train neither the embeddings nor the first so many layers; 0 for the embeddings alone."""
    layerwise_lr_decay: float = 1.0
    """Learning rate of a layer over that of the one above it; the head has --lr (ELECTRA: 0.8)."""
    r_drop: float = 0.0
    """R-Drop: weight of the divergence between two passes with other dropout; twice the work and memory."""
    fgm: float = 0.0
    """FGM: a second pass with the word embeddings moved so far along their gradient; twice the work."""
    seed: int = 1234
    """Seed of the head's (or all) initial weights, sample order and dropout."""

    def problems(self) -> list[str]:
        """Violations of the rules of the hyper-parameters, as messages."""
        found = []
        positive = ("epochs", "global_batch_size", "micro_batch_size", "eval_interval")
        for name in (*positive, "early_stopping", "keep_last_checkpoints"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"--{name.replace('_', '-')} must be positive, not {value}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            found.append(f"--lr must be positive and finite, not {self.lr}")
        for name in ("lr_warmup_fraction", "hidden_dropout", "attention_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                found.append(f"--{name.replace('_', '-')} must be in [0, 1), not {value}")
        for name in ("weight_decay", "clip_grad", "seed", "freeze_layers", "r_drop", "fgm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                found.append(f"--{name.replace('_', '-')} must not be negative, and finite")
        if not 0 < self.layerwise_lr_decay <= 1:
            found.append(f"--layerwise-lr-decay must be above 0 and at most 1, not {self.layerwise_lr_decay}")
        if self.class_weights not in (None, BALANCED) and numbers_of(str(self.class_weights)) is None:
            found.append(f"--class-weights must be positive numbers 1,2,0.5 or balanced, not {self.class_weights}")
        if self.fgm and self.freeze_layers is not None:
            found.append("--fgm needs the gradient of the embeddings, so it excludes --freeze-layers")
        if self.seq_length is not None and self.seq_length < 8:
            found.append(f"--seq-length must be at least 8, not {self.seq_length}")
        return found

    def hyperparameters(self, defaults: Hyperparameters) -> Hyperparameters:
        """The task's defaults with what was given on the command line."""
        names = [f.name for f in dataclasses.fields(Hyperparameters)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(defaults, **given)


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Reading comprehension. Those without a value are the task's own."""

    doc_stride: int | None = None
    """Tokens from the start of a window over a long context to the start of the next [default: 128]."""
    max_query_length: int | None = None
    """Longest question in tokens; longer ones are cut [default: 64]."""
    max_answer_length: int | None = None
    """Longest answer in tokens [default: 50, of SQuAD 30]."""
    n_best_size: int | None = None
    """First and last tokens that are tried in a window [default: 20]."""
    null_score_diff_threshold: float | None = None
    """SQuAD 2.0: a question has no answer where that scores so much above the best span [default: 0]."""

    def problems(self) -> list[str]:
        """Violations of the rules, as messages."""
        names = ("doc_stride", "max_query_length", "max_answer_length", "n_best_size")
        return [
            f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}"
            for name in names
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]

    def given(self) -> dict[str, Any]:
        """What was given on the command line."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of an encoder on a task."""

    task: TaskConfig = field(default_factory=TaskConfig)
    source: ModelSourceConfig = field(default_factory=ModelSourceConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    logging: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_interval=10))

    def check(self) -> None:
        """Raises `UserError` naming every violated rule at once."""
        required = {
            "--task NAME": self.task.task,
            "--data-dir FOLDER": self.task.data_dir,
            "--pretrained-checkpoint FOLDER": self.source.pretrained_checkpoint,
            "--output-dir FOLDER": self.source.output_dir,
        }
        found = [f"{flag} is required" for flag, value in required.items() if not value]
        found += self.tuning.problems() + self.reading.problems() + self.precision.problems()
        if self.source.from_scratch and self.source.eval_only:
            found.append("--eval-only needs trained weights, so it excludes --from-scratch")
        untrained = "--eval-only" if self.source.eval_only else "--zero-shot" if self.task.zero_shot else ""
        if untrained and self.task.train_file:
            found.append(f"{untrained} reads no --train-file")
        if self.source.eval_only and self.task.zero_shot:
            found.append("--zero-shot is for a pre-trained checkpoint, so it excludes --eval-only")
        if self.task.split is not None and (self.task.train_file or self.task.dev_file):
            found.append("--split names the training and dev files, so it excludes --train-file and --dev-file")
        if self.task.test_file and not self.task.predict:
            found.append("--test-file needs --predict")
        if self.task.task.lower() != OWN_TEXTS.name:
            own = {"labels": (), "text_columns": (), "label_column": "label"}
            for name, default in own.items():
                if getattr(self.task, name) != default:
                    found.append(f"--{name.replace('_', '-')} is for --task classification, not {self.task.task}")
        if self.task.version_2_with_negative and self.task.task.lower() not in ("squad", "squad2"):
            found.append(f"--version-2-with-negative is for --task squad, not {self.task.task}")
        if untrained and self.logging.profile is not None:
            found.append(f"--profile is for steps of training, so it excludes {untrained}")
        raise_problems(found + self.logging.problems())


def optimizer_config(tuning: TuningConfig, hyper: Hyperparameters) -> OptimizerConfig:
    """The optimizer of a fine-tuning run."""
    return OptimizerConfig(
        lr=hyper.lr,
        lr_decay_style=tuning.lr_decay_style,
        lr_warmup_fraction=hyper.lr_warmup_fraction,
        weight_decay=hyper.weight_decay,
        clip_grad=tuning.clip_grad,
    )
