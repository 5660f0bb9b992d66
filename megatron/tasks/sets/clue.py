"""Classification of texts: the tasks of CLUE, and a user's own files.

Files, keys, labels and submission names are those of CLUE (https://github.com/CLUEbenchmark/CLUE); hyper-parameters
are the best of PaddleNLP's published grid for BERT-base-sized models.
"""

from __future__ import annotations

from megatron.tasks.kinds.classification import columns, own_columns, text_task
from megatron.tasks.readers import Row
from megatron.tasks.task import Hyperparameters


def keywords_and_abstract(row: Row) -> tuple[str, ...]:
    """Segments of CSL: the keywords joined by a space, then the abstract."""
    return " ".join(row.texts("keyword")), row.text("abst")


def marked_pronoun(row: Row) -> tuple[str, ...]:
    """The segment of CLUEWSC2020: the text with `_` around the noun and `[ ]` around the pronoun."""
    return (marked_spans(row, ("_", "_"), ("[", "]")),)


def marked_spans(row: Row, *around: tuple[str, str]) -> str:
    """The text of a row of CLUEWSC2020 with marks before and after its spans, the noun and the pronoun.

    Indices count code points. The later mark goes in first, so that it does not move the earlier index; the pronoun
    may stand before the noun (it does in some rows of test 1.1).
    """
    text, target = row.text("text"), row.value("target")
    if not isinstance(target, dict):
        raise row.error("'target' must be an object")
    spans = Row(row.path, row.line, target)
    marks = []
    for number, (left, right) in enumerate(around, start=1):
        span, start = spans.text(f"span{number}_text"), spans.value(f"span{number}_index")
        if not isinstance(start, int) or start < 0 or text[start : start + len(span)] != span:
            raise row.error(f"span{number}_text {span!r} does not stand at span{number}_index {start!r} of the text")
        marks.append((start, left + span + right, len(span)))
    for start, marked, length in sorted(marks, reverse=True):
        text = text[:start] + marked + text[start + length :]
    return text


_ENDINGS = ("tsv", "csv", "jsonl", "json")

# Classification of one or two texts in a user's own files, which say what the columns and the labels are.
OWN_TEXTS = text_task(
    name="classification",
    texts=columns("text"),
    labels=(),
    complete=own_columns,
    train_files=tuple(f"train.{ending}" for ending in _ENDINGS),
    dev_files=tuple(f"dev.{ending}" for ending in _ENDINGS),
    test_files=tuple((f"test.{ending}", "classification_predict.json") for ending in _ENDINGS),
    test_ids=False,
    defaults=Hyperparameters(global_batch_size=32),
)

NLI_LABELS = ("contradiction", "entailment", "neutral")

CLUE = (
    text_task(
        name="afqmc",
        texts=columns("sentence1", "sentence2"),
        labels=("0", "1"),
        test_files=(("test.json", "afqmc_predict.json"),),
        defaults=Hyperparameters(lr=2e-5),
    ),
    text_task(
        name="tnews",
        texts=columns("sentence"),
        # 105 and 111 do not exist
        labels=tuple(str(code) for code in range(100, 117) if code not in (105, 111)),
        test_files=(("test.json", "tnews11_predict.json"), ("test1.0.json", "tnews10_predict.json")),
    ),
    text_task(
        name="iflytek",
        texts=columns("sentence"),
        labels=tuple(str(code) for code in range(119)),
        test_files=(("test.json", "iflytek_predict.json"),),
    ),
    text_task(
        name="cmnli",
        texts=columns("sentence1", "sentence2"),
        labels=NLI_LABELS,
        skipped_labels=frozenset("-"),
        test_files=(("test.json", "cmnli_predict.json"),),
        defaults=Hyperparameters(epochs=2, global_batch_size=64),
    ),
    text_task(
        name="ocnli",
        texts=columns("sentence1", "sentence2"),
        labels=NLI_LABELS,
        skipped_labels=frozenset("-"),
        train_files=("train.50k.json", "train.json", "train.30k.json", "train.10k.json", "train.3k.json"),
        test_files=(("test.json", "ocnli_50k_predict.json"),),
        defaults=Hyperparameters(epochs=5, lr=3e-5),
    ),
    text_task(
        name="cluewsc2020",
        texts=marked_pronoun,
        text_columns=("text",),
        labels=("true", "false"),
        test_files=(("test.json", "cluewsc11_predict.json"), ("test1.0.json", "cluewsc10_predict.json")),
        defaults=Hyperparameters(epochs=50, lr=3e-5),
    ),
    text_task(
        name="csl",
        texts=keywords_and_abstract,
        text_columns=("keywords", "abst"),
        labels=("0", "1"),
        truncate="second",
        test_files=(("test.json", "csl_predict.json"),),
        defaults=Hyperparameters(epochs=5, lr=1e-5, seq_length=256),
    ),
)
