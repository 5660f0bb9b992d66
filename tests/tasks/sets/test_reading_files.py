"""Files of reading comprehension: rows in their true forms, mended answers, and what is wrong in a file."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import UserError
from megatron.tasks.kinds.spans import Question
from megatron.tasks.sets.reading_files import locate
from megatron.tasks.table import find_task
from megatron.tasks.task import Split

CONTEXT = "青石镇始建于1402年，由王姓与β-craft行会共同修建。镇上有三座石桥，最老的石桥是望月桥。"
ENGLISH = "Green Hill is a small town. The town was founded in 1402 by two families."


def answers(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"text": text, "answer_start": start} for text, start in pairs]


def nested(*qas: dict[str, Any], context: str = CONTEXT) -> dict[str, Any]:
    """As CLUE writes CMRC 2018."""
    return {"version": "v1.0", "data": [{"paragraphs": [{"id": "DEV_0", "context": context, "qas": list(qas)}]}]}


def question(number: int, found: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"question": "最老的石桥叫什么？", "id": f"DEV_0_QUERY_{number}", "answers": found, **more}


def write(path: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode("utf-8", "surrogatepass"))
    return path


def read(path: Path, name: str = "cmrc2018", split: Split = "dev") -> list[Question]:
    task = find_task(name)
    return task.read(task, path, split)


def test_cmrc_as_clue_writes_it(tmp_path: Path) -> None:
    golds = answers(("王姓与β-craft行会", 13), ("β-craft行会", 16), ("王姓", 13))
    path = write(tmp_path / "dev.json", nested(question(0, golds), question(1, answers(("三座", 33)))))
    first, second = read(path)
    assert first == Question(
        "DEV_0_QUERY_0", "最老的石桥叫什么？", CONTEXT, ("王姓与β-craft行会", "β-craft行会", "王姓"), (13, 25)
    )
    assert second.span == (33, 35) and CONTEXT[33:35] == "三座"
    assert read(path, split="train")[0].span == (13, 25)
    assert read(write(tmp_path / "dev.json.gz", path.read_text())) == [first, second]


def test_test_files_hide_their_answers(tmp_path: Path) -> None:
    fake = answers(("FAKE_ANSWER_1", -1), ("FAKE_ANSWER_2", -1), ("FAKE_ANSWER_3", -1))
    bare = {"question": "哪年？", "id": "TEST_0_QUERY_1"}
    found = read(write(tmp_path / "test.json", nested(question(0, fake), bare)), split="test")
    assert [(q.id, q.answers, q.span) for q in found] == [("DEV_0_QUERY_0", (), None), ("TEST_0_QUERY_1", (), None)]


def test_cmrc_in_the_flat_form_of_its_makers(tmp_path: Path) -> None:
    rows = [
        {
            "context_id": "TRIAL_7",
            "context_text": CONTEXT,
            "title": "青石镇",
            "qas": [
                {"query_id": "TRIAL_7_QUERY_0", "query_text": "哪年始建？", "answers": ["1402年", "不在文中", "1402"]},
                {"query_id": "TRIAL_7_QUERY_1", "query_text": "有什么？", "answers": ["石桥"]},
            ],
        }
    ]
    first, second = read(write(tmp_path / "trial.json", rows))
    assert first == Question("TRIAL_7_QUERY_0", "哪年始建？", CONTEXT, ("1402年", "不在文中", "1402"), (6, 11))
    assert second.span == (35, 37) and not second.moved


def test_drcd_and_squad(tmp_path: Path) -> None:
    golds = [{"id": "1", "text": "望月橋", "answer_start": 1}, {"id": "2", "text": "月橋", "answer_start": 2}]
    rows = {
        "version": "1.3",
        "data": [
            {
                "title": "橋",
                "id": "9",
                "paragraphs": [
                    {
                        "context": "「望月橋」",
                        "id": "9-1",
                        "qas": [{"id": "9-1-1", "question": "何橋？", "answers": golds}],
                    }
                ],
            }
        ],
    }
    (found,) = read(write(tmp_path / "DRCD_dev.json", rows), "drcd")
    assert (found.id, found.answers, found.span) == ("9-1-1", ("望月橋", "月橋"), (1, 4))

    two = {"id": "5ad3", "question": "How old?", "answers": [], "is_impossible": True, "plausible_answers": []}
    one = {"id": "5ad4", "question": "When?", "answers": answers(("1402", 52)), "is_impossible": False}
    path = write(tmp_path / "dev-v2.0.json", {"data": [{"title": "x", **nested(two, one, context=ENGLISH)["data"][0]}]})
    assert [(q.answers, q.span) for q in read(path, "squad2")] == [((), (0, 0)), (("1402",), (52, 56))]
    with pytest.raises(UserError, match=r"5ad3.*no answer; only.*--version-2-with-negative"):
        read(path, "squad")


@pytest.mark.parametrize(
    ("text", "start", "span", "moved"),
    [
        ("王姓", 14, (13, 15), True),  # one to the left, as CMRC 2018 needs it
        ("王姓", 16, (13, 15), True),
        ("石桥", -1, (35, 37), False),  # unknown: the first
        ("石桥", 38, (35, 37), True),
        ("石桥", 45, (41, 43), True),  # the nearest
        ("石桥", 10**30, (41, 43), True),
        ("石桥", -(10**30), (35, 37), True),
    ],
)
def test_wrong_places_are_mended(tmp_path: Path, text: str, start: int, span: tuple[int, int], moved: bool) -> None:
    path = write(tmp_path / "dev.json", nested(question(0, answers((text, start)))))
    for split in ("dev", "train"):
        (found,) = read(path, split=split)
        assert (found.span, found.moved, found.answers) == (span, moved, (text,))
        assert found.context[slice(*span)] == text


def test_answers_that_the_context_lacks(tmp_path: Path) -> None:
    """A dev file keeps them as golden ones; nothing can be learned from them."""
    path = write(tmp_path / "dev.json", nested(question(0, answers(("39764.0", -1), ("望月桥", 44)))))
    (found,) = read(path)
    assert found.answers == ("39764.0", "望月桥") and found.span == (44, 47)
    path = write(tmp_path / "dev.json", nested(question(3, answers(("39764.0", -1)))))
    assert dataclasses.replace(read(path)[0], context="", question="") == Question(
        "DEV_0_QUERY_3", "", "", ("39764.0",), None
    )
    with pytest.raises(UserError) as error:
        read(path, split="train")
    assert str(error.value) == (
        f"{path}, question DEV_0_QUERY_3 at data[0].paragraphs[0].qas[0]: the answer '39764.0' does not stand in the "
        "context"
    )


PLACE = "data[0].paragraphs[0].qas[0]"
FIRST = "question DEV_0_QUERY_0 at " + PLACE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ("[" * 100_000, "not JSON (maximum recursion depth"),
        ('"text"', "neither {"),
        ({"data": {}}, "neither {"),
        ({"data": [3]}, "data[0]: not a JSON object"),
        ({"data": [{"title": "x"}]}, "data[0]: no key 'paragraphs'; the row has 'title'"),
        ({"data": [{"paragraphs": 4}]}, "data[0]: 'paragraphs' must be a list, not 4"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0]: no key 'context'"),
        ([{"context_text": "x", "qas": [{"query_id": 3}]}], "question 3 at [0].qas[0]: no key 'query_text'"),
        (nested({"question": "?", "answers": []}), PLACE + ": no key 'id'"),
        (nested({"question": "?", "id": [1]}), PLACE + ": 'id' must be a string or an integer"),
        (nested({"question": "?", "id": 7}), "question 7 at " + PLACE + ": no key 'answers'"),
        (nested(question(0, [])), FIRST + ": no answer; only SQuAD 2.0"),
        (nested(question(0, answers((" ", 3)))), "an answer is empty"),
        (nested(question(0, [{"text": "王姓"}])), FIRST + ".answers[0]: no key 'answer_start'"),
        (nested(question(0, answers(("王", "3")))), "'answer_start' must be an integer, not \"3\""),  # type: ignore[arg-type]
        (nested(question(0, answers(("王", True)))), "'answer_start' must be an integer, not true"),
        (nested(question(0, [7])), FIRST + ".answers[0]: not a JSON object"),  # type: ignore[list-item]
        (
            nested(*[question(0, answers(("王", 13)))] * 2),
            "question DEV_0_QUERY_0 at data[0].paragraphs[0].qas[1]: another question has this id",
        ),
        ('[{"context_text": "", "qas": [{"query_id": "\\ud800"}]}]', "[0].qas[0]: 'query_id' holds half a surrogate"),
        ('[{"context_text": "\\ud800", "qas": []}]', "[0]: 'context_text' holds half a surrogate pair at character 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "train.json", value)
    with pytest.raises(UserError) as error:
        read(path, split="train")
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_bytes(b'{"data": "\xff"}')
    (tmp_path / "dev.json.gz").write_bytes(b"\x1f\x8b\x08broken")
    for name, message in (("dev.json", "not UTF-8"), ("dev.json.gz", "cannot be read"), ("none", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)
    with pytest.raises(UserError, match="it has 1 answers, which its 'is_impossible' denies"):
        read(write(tmp_path / "dev.json", nested(question(0, answers(("王", 13)), is_impossible=True))), "squad2")


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3), st.integers(-3, 15))
def test_located_answers_stand_there(context: str, answer: str, start: int) -> None:
    place = locate(context, answer, start)
    assert (place is None) == (answer not in context)
    if place is not None:
        assert context[place : place + len(answer)] == answer
    if start >= 0 and context[start : start + len(answer)] == answer:
        assert place == start
