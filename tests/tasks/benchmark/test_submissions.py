"""From a test file to the archive: what every task of a benchmark writes is what its server reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data.tokenizer import Tokenizer
from megatron.mpu.context import ParallelContext
from megatron.tasks.benchmark.archive import of_board, write_archive
from megatron.tasks.benchmark.boards import BOARDS, Board, Result
from megatron.tasks.benchmark.validation import validate_archive
from megatron.tasks.kinds.prompts import with_prompt
from megatron.tasks.pretrained import open_pretrained
from megatron.tasks.sets.fewclue import APP_CATEGORIES, DISCIPLINES, TOPICS
from megatron.tasks.submission import submission_name
from megatron.tasks.table import find_task
from megatron.tasks.task import Task
from tests.tasks.tiny import CHARACTERS, write_checkpoint

ROWS = 7
WORDS = "".join([*APP_CATEGORIES, *DISCIPLINES.values(), *TOPICS.values(), "很不是的并且相能可以正确错误"])


def text(rng: random.Random) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randint(4, 90)))


def row(task: str, number: int, rng: random.Random) -> dict[str, Any]:
    """A line of a test file; ids neither begin at 0 nor count on."""
    values: dict[str, Any] = {"id": 900 - 3 * number}
    name = task.removeprefix("fewclue-").removesuffix("2020")
    if name in ("afqmc", "cmnli", "ocnli", "bustm"):
        return values | {"sentence1": text(rng), "sentence2": text(rng)}
    if name == "cluewsc":
        target = {"span1_text": "天地", "span1_index": 1, "span2_text": "人", "span2_index": 4}
        return values | {"text": "山天地水人木", "target": target}
    if name == "csl":
        return values | {"abst": text(rng), "keyword": ["金木", "日月"]}
    if name == "csldcp":
        return values | {"content": text(rng)}
    if name == "cluener":
        return values | {"text": text(rng)}
    assert name in ("tnews", "iflytek", "eprstmt")
    return values | {"sentence": text(rng)}


def write_test_file(result: Result, path: Path) -> None:
    """A test file in the true form of its task."""
    rng = random.Random(result.file)
    idioms = ["".join(rng.choices(CHARACTERS, k=4)) for _ in range(10)]
    value: Any = None
    lines: list[dict[str, Any]] = []
    if result.form == "answers":
        questions = [{"id": f"TEST_{n}_QUERY_0", "question": text(rng), "answers": []} for n in range(ROWS)]
        value = {"version": "v1", "data": [{"paragraphs": [{"id": "TEST_0", "context": text(rng), "qas": questions}]}]}
    elif result.task == "c3":
        choices = [list("天地人山"[: 2 + n % 3]) for n in range(ROWS)]
        questions = [{"question": text(rng), "choice": each, "id": 50 - n} for n, each in enumerate(choices)]
        value = [[[text(rng)], questions[:3]], [[text(rng), text(rng)], questions[3:]]]
    elif result.task == "chid":
        tags = [f"#idiom{500 + n:06d}#" for n in range(ROWS)]
        lines = [{"candidates": idioms, "content": [f"天{tags[0]}，{tags[1]}。", *(f"地{tag}" for tag in tags[2:])]}]
    elif result.task == "fewclue-chid":
        lines = [{"id": 9 - n, "candidates": idioms[:7], "content": f"{text(rng)}#idiom#人"} for n in range(ROWS)]
    else:
        lines = [row(result.task, number, rng) for number in range(ROWS)]
    rows = [json.dumps(line, ensure_ascii=False) for line in ([value] if value is not None else lines)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def predictions(task: Task, examples: list[Any], tokenizer: Tokenizer) -> list[Any]:
    """What a model with random outputs says."""
    encoded = task.kind.encode(task, examples, tokenizer, 128)
    if task.kind.head == "masked":
        assert encoded.candidates is not None
        shape = encoded.candidates.shape[:2]
    else:
        count = len(encoded.tokens) if task.kind.head == "token" else encoded.num_inputs
        shape = (count, task.kind.num_outputs(task))
    outputs = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return task.kind.decode(task, examples, encoded, outputs)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder / "pretrained", characters="".join(dict.fromkeys(WORDS)))
    return open_pretrained(folder / "pretrained", folder / "converted", ParallelContext.single()).tokenizer


def plain(task: Task) -> Task:
    return task


@pytest.mark.parametrize(("board", "by"), [*((board, plain) for board in BOARDS), (BOARDS[-1], with_prompt)])
def test_what_every_task_writes_passes(
    board: Board, by: Callable[[Task], Task], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = []
    results = [result for result in (*board.results, *board.optional) if result.file != "diagnostics_predict.json"]
    for result in results:
        task = by(find_task(result.task))
        folder = tmp_path / "data" / ("fewclue" if board.splits else "") / task.name.removeprefix("fewclue-")
        test_file = folder / result.test_files[0]
        write_test_file(result, test_file)
        examples = task.read(task, test_file, "test")
        path = tmp_path / submission_name(task, test_file)
        path.write_text(task.submission(examples, predictions(task, examples, tokenizer)), encoding="utf-8")
        files.append(path)
    sent = of_board(files, board)
    assert [path.name for path in sent] == [result.file for result in results]
    report = validate_archive(write_archive(sent, tmp_path, "a.zip"), board, tmp_path / "data")
    assert report.findings == []
    assert [note for note in report.notes if "not scored" not in note] == [f"{path.name}: right" for path in sent]


def test_every_test_file_that_a_task_knows_is_answered_under_a_name_of_its_server() -> None:
    read = {result.file for board in BOARDS for result in (*board.results, *board.optional)}
    for name in {result.task for board in BOARDS for result in board.results}:
        assert {file for _, file in find_task(name).test_files} <= read
