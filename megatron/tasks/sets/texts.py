"""Classification of texts outside CLUE: Chinese reviews, question pairs and inference, and pairs of GLUE.

Files are those of the sets' own archives (XNLI: https://github.com/facebookresearch/XNLI, GLUE:
https://gluebenchmark.com); learning rates of the Chinese sets are Chinese-BERT-wwm's, MNLI's hyper-parameters
Megatron-LM's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron.tasks.kinds.classification import Classified, TextExample, columns, f1_scores, text_task
from megatron.tasks.readers import Row, read_table
from megatron.tasks.sets.clue import NLI_LABELS
from megatron.tasks.sets.pairs import pair, pair_rows
from megatron.tasks.task import Hyperparameters, Split, Task

_PAIR = columns("text_a", "text_b")
_SEPARATE_WORDS = ("premise", "hypo")


def glue_lines(examples: Sequence[TextExample], predictions: Sequence[Classified]) -> str:
    """GLUE's result file: a header, then the number of the row, a tab and the label of each."""
    lines = [
        f"{number}\t{prediction.label}"
        for number, (_, prediction) in enumerate(zip(examples, predictions, strict=True))
    ]
    return "\n".join(["index\tprediction", *lines]) + "\n"


def xnli_rows(path: Path, split: Split) -> Iterator[Row]:
    """Rows of XNLI with the columns text_a, text_b and label, of any of its files.

    multinli.train.zh.tsv has spaces between its words, which go, and writes "contradictory". xnli.dev.tsv and
    xnli.test.tsv hold fifteen languages, of which Chinese stays. Others have text_a, text_b and label.
    """
    for row in read_table(path):
        if row.values.get("language", "zh") != "zh":
            continue
        pairs = (_SEPARATE_WORDS, ("sentence1", "sentence2"), ("text_a", "text_b"))
        names = next((pair for pair in pairs if pair[0] in row.values), pairs[-1])
        texts = [row.text(name) for name in names]
        if names == _SEPARATE_WORDS:
            texts = ["".join(text.split()) for text in texts]
        values = dict(zip(("text_a", "text_b"), texts, strict=True))
        if split != "test":
            label = row.text("gold_label" if "gold_label" in row.values else "label")
            values["label"] = "contradiction" if label == "contradictory" else label
        yield Row(path, row.line, values)


def tab_rows(path: Path, split: Split) -> Iterator[Row]:
    """Rows of a table with a header line."""
    del split
    return read_table(path)


def qqp_rows(path: Path, split: Split) -> Iterator[Row]:
    """Rows of QQP; of its train file without those that are cut short or have an empty column."""
    keys = ("question1", "question2", "is_duplicate")
    for row in read_table(path, skip_short=split == "train"):
        if split != "train" or all(row.text(key).strip() for key in keys):
            yield row


def mnli_part(path: Path) -> str:
    """Which of the two dev files of MNLI: of the genres of the train file, or of others."""
    return next((part for part in ("mismatched", "matched") if part in path.name), "")


def _question_pairs(name: str, lr: float) -> Task:
    """LCQMC or BQ: do two questions ask the same?"""
    return text_task(
        name=name,
        labels=("0", "1"),
        texts=pair,
        text_columns=_PAIR.keys,
        rows=pair_rows,
        test_ids=False,
        train_files=("train.tsv", "train.txt"),
        dev_files=("dev.tsv", "dev.txt"),
        test_files=(("test.tsv", f"{name}_predict.json"), ("test.txt", f"{name}_predict.json")),
        defaults=Hyperparameters(global_batch_size=32, lr=lr),
    )


TEXT_TASKS = (
    text_task(
        name="chnsenticorp",
        labels=("0", "1"),
        texts=columns("text_a"),
        rows=tab_rows,
        test_ids=False,
        train_files=("train.tsv",),
        dev_files=("dev.tsv",),
        test_files=(("test.tsv", "chnsenticorp_predict.json"),),
        defaults=Hyperparameters(global_batch_size=32, lr=2e-5, seq_length=256),
    ),
    _question_pairs("lcqmc", 2e-5),
    _question_pairs("bq", 3e-5),
    text_task(
        name="xnli",
        labels=NLI_LABELS,
        texts=_PAIR,
        rows=xnli_rows,
        test_ids=False,
        train_files=("multinli.train.zh.tsv", "train.tsv"),
        dev_files=("xnli.dev.tsv", "dev.tsv"),
        test_files=(("xnli.test.tsv", "xnli_predict.json"), ("test.tsv", "xnli_predict.json")),
        defaults=Hyperparameters(global_batch_size=32, lr=3e-5),
    ),
    text_task(
        name="mnli",
        labels=NLI_LABELS,
        texts=columns("sentence1", "sentence2"),
        label_key="gold_label",
        skipped_labels=frozenset("-"),
        test_ids=False,
        rows=tab_rows,
        group=mnli_part,
        submission=glue_lines,
        train_files=("train.tsv",),
        dev_files=("dev_matched.tsv dev_mismatched.tsv",),
        test_files=(("test_matched.tsv", "MNLI-m.tsv"), ("test_mismatched.tsv", "MNLI-mm.tsv")),
        defaults=Hyperparameters(epochs=5, global_batch_size=64, lr_warmup_fraction=0.065),
    ),
    text_task(
        name="qqp",
        labels=("0", "1"),
        texts=columns("question1", "question2"),
        label_key="is_duplicate",
        test_ids=False,
        rows=qqp_rows,
        scores=f1_scores,
        submission=glue_lines,
        train_files=("train.tsv",),
        dev_files=("dev.tsv",),
        test_files=(("test.tsv", "QQP.tsv"),),
        defaults=Hyperparameters(global_batch_size=32, lr=2e-5),
    ),
)
