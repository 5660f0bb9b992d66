"""Pair models: continued training on sentence pairs of several corpora, for tasks of pairs to start from.

After the pair models of CLUEPretrainedModels (https://github.com/CLUEbenchmark/CLUEPretrainedModels): the encoder of
the kept checkpoint is what AFQMC-like tasks start from; its head stays behind.
"""

from __future__ import annotations

from pathlib import Path

from megatron.tasks.classification import CLASSIFICATION, TextExample, accuracy_scores
from megatron.tasks.readers import Row, read_rows, read_table
from megatron.tasks.submission import label_lines
from megatron.tasks.task import Hyperparameters, Split, Task

# Names of the two texts: of AFQMC and BUSTM; of LCQMC and BQ, which have no header; of copies of them; of QQP.
TEXT_COLUMNS = (("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b"), ("question1", "question2"))
JSON_ENDINGS = {".json", ".jsonl"}


def read_pairs(task: Task, path: Path, split: Split) -> list[TextExample]:
    """Pairs of a corpus with label 1 for the same meaning and 0 for another.

    JSON lines; otherwise tab-separated columns, the texts and the label where there is no header. `.gz` of each. Raises
    `UserError` naming file and line of a row without two texts, or with another label.
    """
    suffixes = {suffix.lower() for suffix in path.suffixes}
    json_lines = bool(suffixes & JSON_ENDINGS)
    examples = []
    for number, row in enumerate(
        read_rows(path) if json_lines else read_table(path, columns=(*TEXT_COLUMNS[1], "label"))
    ):
        label = None if split == "test" else str(row.code("label"))
        if label is not None and label not in task.labels:
            raise row.error(f"label {label!r} of a pair must be 0 (another meaning) or 1 (the same)")
        index = None if label is None else task.labels.index(label)
        examples.append(TextExample(_texts(row), index, row.code("id") if "id" in row.values else number))
    return examples


def _texts(row: Row) -> tuple[str, ...]:
    names = next((names for names in TEXT_COLUMNS if set(names) <= set(row.values)), None)
    if names is None:
        known = ", ".join(" and ".join(names) for names in TEXT_COLUMNS)
        raise row.error(f"no two texts; it has {', '.join(row.values)}; the texts must be named {known}")
    return tuple(row.text(name) for name in names)


PAIRS = Task(
    name="pairs",
    kind=CLASSIFICATION,
    labels=("0", "1"),
    read=read_pairs,
    scores=accuracy_scores,
    submission=label_lines,
    train_files=("train.json", "train.tsv"),
    dev_files=("dev.json", "dev.tsv"),
    test_files=(("test.json", "pairs_predict.json"), ("test.tsv", "pairs_predict.json")),
    defaults=Hyperparameters(global_batch_size=32),
)
