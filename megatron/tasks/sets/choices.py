"""Multiple choice: C3 and CHID of CLUE, and RACE.

Files and submission names of the first two are CLUE's (https://github.com/CLUEbenchmark/CLUE), their
hyper-parameters the best of PaddleNLP's published grid for BERT-base-sized models; RACE's are Megatron-LM's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from megatron.tasks.kinds.choices import (
    CHOICES,
    NO_CHOICE,
    ChoiceExample,
    Chosen,
    choice_lines,
    choice_scores,
)
from megatron.tasks.kinds.cloze import CLOZE, Blank
from megatron.tasks.readers import Row, find_file, read_array, read_rows
from megatron.tasks.submission import json_lines, json_object
from megatron.tasks.task import Hyperparameters, Split, Task

C3_CHOICES = 4
RACE_LETTERS = "ABCD"
_TAG = re.compile(r"#idiom\d*#")


def read_c3(task: Task, path: Path, split: Split) -> list[ChoiceExample]:
    """Questions of C3: documents `[[lines], [{question, choice, answer}], id]`; test files have no answers.

    Segments of a choice: the document's lines, the question, the choice. Of choices that are alike the last is the
    right one. A question without an id has its number in the file.
    """
    examples: list[ChoiceExample] = []
    for number, (line, document) in enumerate(read_array(path), start=1):
        where = f"line {line}, document {number}"
        if not isinstance(document, list) or len(document) < 2 or not isinstance(document[1], list):
            raise UserError(f"{path}, {where}: not a list of lines, questions and an id")
        context = "".join(Row(path, where, {"lines": document[0]}).texts("lines"))
        for place, values in enumerate(document[1], start=1):
            question = values if isinstance(values, dict) else {}
            row = Row(path, f"{where}, question {place}", {**question, "context": context})
            example = parse_c3(task, row)
            answer: int | None = None
            if split != "test":
                choices, right = row.texts("choice"), row.text("answer")
                if right not in choices:
                    raise row.error(f"the answer {right!r} is none of the choices {', '.join(map(repr, choices))}")
                answer = max(index for index, choice in enumerate(choices) if choice == right)
            id_ = row.code("id") if "id" in row.values else len(examples)
            examples.append(dataclasses.replace(example, answer=answer, id=id_))
    return examples


def parse_c3(task: Task, row: Row) -> ChoiceExample:
    """A question to answer: a row of "context", "question" and the list "choice"; as many as lack to four fill up."""
    del task
    context, question, choices = row.text("context"), row.text("question"), row.texts("choice")
    if not 2 <= len(choices) <= C3_CHOICES:
        raise row.error(f"{len(choices)} choices; there must be 2 to {C3_CHOICES}")
    padded = choices + [NO_CHOICE] * (C3_CHOICES - len(choices))
    return ChoiceExample(tuple((context, question, each) for each in padded), len(choices), None, row.line)


def read_chid(task: Task, path: Path, split: Split) -> list[Blank]:
    """Blanks of CHID's rows `{"candidates", "content"}`.

    In CLUE's files content is a list of passages, whose blanks are tags that NAME_answer.json beside the file maps
    to indices of candidates. In FewCLUE's it is one passage with one blank, and the row has the answer and an id.
    """
    del task
    answers: dict[str, Any] | None = None
    blanks: list[Blank] = []
    for row in read_rows(path):
        candidates = tuple(row.texts("candidates"))
        if len(candidates) < 2:
            raise row.error("'candidates' must hold at least two idioms")
        tagged = isinstance(row.value("content"), list)
        if tagged and split != "test" and answers is None:
            answers = _chid_answers(path)
        found = len(blanks)
        for passage in row.texts("content") if tagged else [row.text("content")]:
            pieces = tuple(_TAG.split(passage))
            for blank, tag in enumerate(_TAG.findall(passage)):
                answer: Any = None
                if split != "test":
                    answer = (answers or {}).get(tag) if tagged else row.value("answer")
                    if type(answer) is not int or not 0 <= answer < len(candidates):
                        raise row.error(f"the answer {answer!r} of {tag} is no index of {len(candidates)} candidates")
                id_ = tag if tagged else row.code("id")
                blanks.append(Blank(pieces, blank, candidates, answer, id_, f"{path}, line {row.line}"))
        if len(blanks) == found or not tagged and len(blanks) > found + 1:
            raise row.error(f"{'no' if len(blanks) == found else 'more than one'} #idiom...# in 'content'")
    return blanks


def parse_chid(task: Task, row: Row) -> Blank:
    """A blank to fill: a row of "content", one passage with one blank, and the list "candidates"."""
    del task
    passage, candidates = row.text("content"), tuple(row.texts("candidates"))
    pieces = tuple(_TAG.split(passage))
    if len(pieces) != 2 or len(candidates) < 2:
        raise row.error("'content' must hold one #idiom#, and 'candidates' at least two idioms")
    return Blank(pieces, 0, candidates, None, row.line, f"{row.path}:{row.line}")


def _chid_answers(path: Path) -> dict[str, Any]:
    name = path.name.removesuffix(".gz").removesuffix(".json") + "_answer.json"
    file = find_file(path.parent, name)
    if file is None:
        raise UserError(f"{path} has its answers in {name}, which is not beside it")
    return {tag: answer for row in read_rows(file) for tag, answer in row.values.items()}


def chid_answers(examples: Sequence[Blank], predictions: Sequence[Chosen]) -> str:
    """One JSON object of tags and indices of candidates; for FewCLUE a line `{"id":3000,"answer":0}` a row."""
    answers = [(example.id, chosen.choice) for example, chosen in zip(examples, predictions, strict=True)]
    if all(isinstance(id_, str) and _TAG.fullmatch(id_) for id_, _ in answers):
        return json_object({str(tag): choice for tag, choice in answers})
    return json_lines({"id": id_, "answer": answer} for id_, answer in answers)


def read_race(task: Task, path: Path, split: Split) -> list[ChoiceExample]:
    """Questions of RACE: `{"article", "questions", "options", "answers", "id"}` a passage.

    path: a file of JSON lines, or a folder of files of one passage each, in folders middle and high. Segments of a
    choice: the question with the choice in its blank `_`, or behind it; then the article, as Megatron-LM has them.
    """
    examples: list[ChoiceExample] = []
    for row in _passages(path):
        article, questions = row.text("article"), row.texts("questions")
        options = row.value("options")
        answers = row.texts("answers") if split != "test" else [None] * len(questions)
        if not isinstance(options, list) or not len(questions) == len(options) == len(answers):
            raise row.error("'questions', 'options' and 'answers' must be lists of the same length")
        name = str(row.code("id")) if "id" in row.values else row.path.stem
        levels = [level for level in ("middle", "high") if name.startswith(level) or row.path.parent.name == level]
        for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            values = {"article": article, "question": question, "options": options[place]}
            part = Row(row.path, f"line {row.line}, question {place + 1}", values)
            example = parse_race(task, part)
            if answer is not None and answer not in tuple(RACE_LETTERS):
                raise part.error(f"the answer {answer!r} is none of {', '.join(RACE_LETTERS)}")
            index = None if answer is None else RACE_LETTERS.index(answer)
            group = levels[0] if levels else ""
            examples.append(dataclasses.replace(example, answer=index, id=f"{name}-{place}", group=group))
    return examples


def parse_race(task: Task, row: Row) -> ChoiceExample:
    """A question to answer: a row of "article", "question" and the list "options"."""
    del task
    article, question, choices = row.text("article"), row.text("question"), row.texts("options")
    if len(choices) != len(RACE_LETTERS):
        raise row.error(f"{len(choices)} options; there must be {len(RACE_LETTERS)}")
    blank = "_" in question
    asked = [question.replace("_", choice) if blank else f"{question} {choice}" for choice in choices]
    return ChoiceExample(tuple((each, article) for each in asked), len(choices), None, row.line)


def _passages(path: Path) -> Iterator[Row]:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    return (row for file in files for row in read_rows(file))


def race_lines(examples: Sequence[ChoiceExample], predictions: Sequence[Chosen]) -> str:
    """One line `{"id":"high3.txt-0","answer":"A"}` a question: the passage's id and the question's place in it."""
    pairs = zip(examples, predictions, strict=True)
    return json_lines({"id": example.id, "answer": RACE_LETTERS[chosen.choice]} for example, chosen in pairs)


CHOICE_TASKS = (
    Task(
        name="c3",
        kind=CHOICES,
        labels=(),
        read=read_c3,
        scores=choice_scores,
        submission=choice_lines,
        parse=parse_c3,
        train_files=("d-train.json m-train.json", "c3-d-train.json c3-m-train.json"),
        dev_files=("d-dev.json m-dev.json", "c3-d-dev.json c3-m-dev.json"),
        test_files=(("test1.1.json", "c311_predict.json"), ("test1.0.json", "c310_predict.json")),
        defaults=Hyperparameters(epochs=8, global_batch_size=24, lr=3e-5, seq_length=512),
    ),
    Task(
        name="chid",
        kind=CLOZE,
        labels=(),
        read=read_chid,
        scores=choice_scores,
        submission=chid_answers,
        parse=parse_chid,
        test_files=(("test1.1.json", "chid11_predict.json"), ("test1.0.json", "chid10_predict.json")),
        defaults=Hyperparameters(global_batch_size=32, lr=2e-5, lr_warmup_fraction=0.06, seq_length=64),
    ),
    Task(
        name="race",
        kind=CHOICES,
        labels=(),
        read=read_race,
        scores=choice_scores,
        submission=race_lines,
        parse=parse_race,
        truncate="second",
        train_files=("train", "train.jsonl", "train.json"),
        dev_files=("dev", "dev.jsonl", "dev.json"),
        test_files=(("test", "race_predict.json"), ("test.jsonl", "race_predict.json")),
        defaults=Hyperparameters(global_batch_size=32, lr=1e-5, lr_warmup_fraction=0.06, seq_length=512),
    ),
)
