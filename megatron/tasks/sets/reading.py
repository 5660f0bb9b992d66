"""Reading comprehension: CMRC 2018 of CLUE, DRCD, SQuAD 1.1 and 2.0.

Hyper-parameters are PaddleNLP's best for CMRC 2018, CLUE's for DRCD, and those of BERT-base for SQuAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.tasks.kinds.spans import SPANS, Answer, Question, parse_question
from megatron.tasks.sets.reading_files import read_questions
from megatron.tasks.sets.reading_metrics import Squad2Inputs, cmrc_scores, squad2_scores, squad_scores
from megatron.tasks.submission import json_object
from megatron.tasks.task import Hyperparameters, Reading, Task


def chinese_scores(task: Task, examples: Sequence[Question], predictions: Sequence[Answer]) -> dict[str, float]:
    """Scores of CMRC 2018, which DRCD takes, too."""
    return cmrc_scores(_golds(examples), _texts(predictions))


def english_scores(task: Task, examples: Sequence[Question], predictions: Sequence[Answer]) -> dict[str, float]:
    """Scores of SQuAD 1.1 or, where questions may have no answer, 2.0."""
    golds, texts = _golds(examples), _texts(predictions)
    if task.reading is None or not task.reading.version_2_with_negative:
        return squad_scores(golds, texts)
    return squad2_scores(
        Squad2Inputs(
            golds=golds,
            predictions=texts,
            candidates={number: found.best[0].text if found.best else "" for number, found in enumerate(predictions)},
            null_odds={number: found.null_odds for number, found in enumerate(predictions)},
        )
    )


def answers_object(examples: Sequence[Question], predictions: Sequence[Answer]) -> str:
    """One object {id: answer}, in the order of the test file: what CLUE's server and SQuAD's scripts take."""
    return json_object({str(example.id): found.text for example, found in zip(examples, predictions, strict=True)})


def _golds(examples: Sequence[Question]) -> dict[int, Sequence[str]]:
    """Golden answers by number: ids may occur again in another file."""
    return {number: example.answers for number, example in enumerate(examples)}


def _texts(predictions: Sequence[Answer]) -> dict[int, str]:
    return {number: found.text for number, found in enumerate(predictions)}


def _reading_task(**rest: Any) -> Task:
    """A task of questions on contexts."""
    return Task(
        kind=SPANS,
        labels=(),
        read=read_questions,
        submission=answers_object,
        parse=parse_question,
        text_columns=("question", "context"),
        **rest,
    )


CMRC2018 = _reading_task(
    name="cmrc2018",
    scores=chinese_scores,
    train_files=("train.json", "cmrc2018_train.json"),
    dev_files=("dev.json", "cmrc2018_dev.json"),
    test_files=(("test.json", "cmrc2018_predict.json"),),
    defaults=Hyperparameters(epochs=2, global_batch_size=24, lr=3e-5, seq_length=512),
    reading=Reading(),
)

DRCD = _reading_task(
    name="drcd",
    scores=chinese_scores,
    train_files=("DRCD_training.json", "train.json"),
    dev_files=("DRCD_dev.json", "dev.json"),
    test_files=(("test.json", "drcd_predict.json"), ("DRCD_test.json", "drcd_predict.json")),
    defaults=Hyperparameters(epochs=2, global_batch_size=32, lr=3e-5, seq_length=512),
    reading=Reading(),
)

SQUAD = _reading_task(
    name="squad",
    scores=english_scores,
    train_files=("train-v1.1.json", "train.json"),
    dev_files=("dev-v1.1.json", "dev.json"),
    # the test set is not public: what is published are answers to the dev file
    test_files=(("test.json", "squad_predict.json"), ("dev-v1.1.json", "squad_dev_predict.json")),
    defaults=Hyperparameters(epochs=2, global_batch_size=12, lr=3e-5, seq_length=384),
    reading=Reading(max_answer_length=30),
)

SQUAD2 = _reading_task(
    name="squad2",
    scores=english_scores,
    train_files=("train-v2.0.json", "train.json"),
    dev_files=("dev-v2.0.json", "dev.json"),
    test_files=(("test.json", "squad2_predict.json"), ("dev-v2.0.json", "squad2_dev_predict.json")),
    defaults=Hyperparameters(epochs=2, global_batch_size=12, lr=3e-5, seq_length=384),
    reading=Reading(max_answer_length=30, version_2_with_negative=True),
)

READING = (CMRC2018, DRCD, SQUAD, SQUAD2)
