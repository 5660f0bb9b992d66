"""Pair models: continued training on sentence pairs of several corpora, for tasks of pairs to start from.

After the pair models of CLUEPretrainedModels (https://github.com/CLUEbenchmark/CLUEPretrainedModels): the encoder of
the kept checkpoint is what AFQMC-like tasks start from; its head stays behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron.tasks.kinds.classification import text_task
from megatron.tasks.readers import Row, read_rows, read_table
from megatron.tasks.task import Hyperparameters, Split

# Names of the two texts: of AFQMC and BUSTM; of LCQMC and BQ, which have no header; of copies of them; of QQP.
TEXT_COLUMNS = (("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b"), ("question1", "question2"))
JSON_ENDINGS = {".json", ".jsonl"}


def pair_rows(path: Path, split: Split) -> Iterator[Row]:
    """Rows of a corpus: JSON lines, or tab-separated columns; without a header two texts and the label."""
    del split
    json_lines = JSON_ENDINGS & {suffix.lower() for suffix in path.suffixes}
    if json_lines:
        return read_rows(path)
    others = [name for names in TEXT_COLUMNS for name in names]
    return read_table(path, columns=(*TEXT_COLUMNS[1], "label"), others=others)


def pair(row: Row) -> tuple[str, ...]:
    """The two texts, by whatever names."""
    names = next((names for names in TEXT_COLUMNS if set(names) <= set(row.values)), None)
    if names is None:
        known = ", ".join(" and ".join(names) for names in TEXT_COLUMNS)
        raise row.error(f"no two texts; it has {', '.join(row.values)}; the texts must be named {known}")
    return tuple(row.text(name) for name in names)


PAIRS = text_task(
    name="pairs",
    texts=pair,
    rows=pair_rows,
    test_ids=False,
    text_columns=("sentence1", "sentence2"),
    labels=("0", "1"),
    train_files=("train.json", "train.tsv"),
    dev_files=("dev.json", "dev.tsv"),
    test_files=(("test.json", "pairs_predict.json"), ("test.tsv", "pairs_predict.json")),
    defaults=Hyperparameters(global_batch_size=32),
)
