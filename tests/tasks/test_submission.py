"""Submission files: names, ids and label codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.tasks.kinds.classification import Classified, TextExample
from megatron.tasks.submission import label_lines, submission_name
from megatron.tasks.table import find_task


@pytest.mark.parametrize(
    ("task", "file", "name"),
    [
        ("tnews", "test.json", "tnews11_predict.json"),
        ("tnews", "test1.0.json.gz", "tnews10_predict.json"),
        ("cluewsc2020", "test.json", "cluewsc11_predict.json"),
        ("cluewsc2020", "test1.0.json", "cluewsc10_predict.json"),
        ("ocnli", "test.json", "ocnli_50k_predict.json"),
        ("tnews", "test_public.json", "tnews_test_public_predict.json"),
    ],
)
def test_names(task: str, file: str, name: str) -> None:
    assert submission_name(find_task(task), Path("somewhere") / file) == name


def test_lines_keep_ids_order_and_label_codes() -> None:
    examples = [TextExample(("x",), None, id_) for id_ in (2415, 2420, "7", 3)]
    text = label_lines(examples, [Classified(label, ()) for label in ("100", "116", "114", "100")])
    assert text.splitlines()[0] == '{"id":2415,"label":"100"}'
    assert [json.loads(line)["id"] for line in text.splitlines()] == [2415, 2420, "7", 3]
    with pytest.raises(ValueError, match="shorter"):
        label_lines(examples, [Classified("100", ())])


def test_submission_of_ids_that_are_not_sequential(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    rows = [{"id": n, "abst": "摘要", "keyword": ["词"]} for n in (2415, 17, 300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = find_task("csl")
    examples = task.read(task, path, "test")
    assert task.submission(examples, [Classified(label, ()) for label in "101"]) == (
        '{"id":2415,"label":"1"}\n{"id":17,"label":"0"}\n{"id":300,"label":"1"}\n'
    )
