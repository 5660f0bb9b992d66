"""Multiple choice: rows of C3, CHID and RACE in the true forms of their files, and what is wrong in a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import UserError
from megatron.tasks.config import TaskConfig
from megatron.tasks.inputs import find_files, read_examples
from megatron.tasks.kinds.choices import Chosen
from megatron.tasks.table import find_task

QUESTION = {"question": "他们要去哪儿?", "choice": ["车站", "医院", "学校"], "answer": "医院"}
C3 = [["男：走吧。", "女：好，我带上病历。"], [QUESTION], "7-12"]
IDIOMS = "画龙点睛 守株待兔 亡羊补牢 对牛弹琴 掩耳盗铃 井底之蛙 刻舟求剑 滥竽充数 杯弓蛇影 自相矛盾".split()
CHID = {
    "candidates": IDIOMS,
    "content": ["他在#idiom000007#，等着#idiom000008#的结果。", "真是#idiom000009#！", "没有空的一段。"],
}
ANSWERS = {"#idiom000007#": 1, "#idiom000008#": 0, "#idiom000009#": 9}
FEW = {"id": 24, "candidates": IDIOMS[:7], "content": "大功告成，#idiom#。", "answer": 6}
RACE = {
    "answers": ["B", "D"],
    "options": [["red", "blue", "green", "pink"], ["a cat", "a dog", "a cow", "a pig"]],
    "questions": ["The sea is _ and _ .", "What did Tom see?"],
    "article": "Tom went to the blue sea with a pig.",
    "id": "high17.txt",
}


def write_json(path: Path, value: Any, **style: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, **style) + "\n", encoding="utf-8")
    return path


def write_lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_c3_questions(tmp_path: Path, indent: int | None) -> None:
    four = {"question": "谁?", "choice": ["甲", "乙", "丙", "丁"], "answer": "丁"}
    path = write_json(tmp_path / "d-train.json", [C3, [["短文。"], [four, QUESTION], "8-1"]], indent=indent)
    examples = read_examples(find_task("c3"), path, "train")
    context = "男：走吧。女：好，我带上病历。"
    assert examples[0].inputs == tuple(
        (context, "他们要去哪儿?", choice) for choice in ("车站", "医院", "学校", "无效答案")
    )
    assert [(e.choices, e.answer, e.id) for e in examples] == [(3, 1, 0), (4, 3, 1), (3, 1, 2)]
    assert examples[1].inputs[2] == ("短文。", "谁?", "丙")


def test_c3_takes_the_last_of_choices_that_are_alike(tmp_path: Path) -> None:
    question = {"question": "?", "choice": ["甲", "乙", "甲"], "answer": "甲"}
    path = write_json(tmp_path / "m-dev.json", [[["文"], [question], "1"]])
    assert read_examples(find_task("c3"), path, "dev")[0].answer == 2


def test_c3_test_files_and_their_submission(tmp_path: Path) -> None:
    task = find_task("c3")
    rows = [{"question": "?", "choice": ["甲", "乙"], "id": id_} for id_ in (508, 12, 3)]
    path = write_json(tmp_path / "test1.1.json", [[["文"], rows[:2]], [["字"], rows[2:]]])
    examples = read_examples(task, path, "test")
    assert [(e.answer, e.id) for e in examples] == [(None, 508), (None, 12), (None, 3)]
    chosen = [Chosen(choice, ()) for choice in (1, 0, 1)]
    assert task.submission(examples, chosen) == '{"id":508,"label":1}\n{"id":12,"label":0}\n{"id":3,"label":1}\n'


def test_c3_files_are_read_together(tmp_path: Path) -> None:
    for name, count in (("d-train", 2), ("m-train", 3), ("d-dev", 1), ("m-dev", 4)):
        write_json(tmp_path / f"{name}.json", [C3] * count)
    files = find_files(TaskConfig(task="c3", data_dir=str(tmp_path)), trained=True)
    assert [path.name for path in files.train] == ["d-train.json", "m-train.json"]
    assert [path.name for path in files.dev] == ["d-dev.json", "m-dev.json"]
    (tmp_path / "m-dev.json").unlink()
    with pytest.raises(UserError, match=r"holds no d-dev\.json and m-dev\.json or c3-d-dev\.json"):
        find_files(TaskConfig(task="c3", data_dir=str(tmp_path)), trained=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "line 1: not a JSON array"),
        ('[\n["文"],', "line 2, document 1: not a list of lines, questions and an id"),
        ('[\n[["文"], [1], "1"]]', "line 2, document 1, question 1: no key 'question'"),
        ('[[["文"], [{"question": "?", "choice": "甲乙", "answer": "甲"}]]]', "question 1: 'choice' must be a list"),
        ('[[["文"], [{"question": "?", "choice": ["甲"], "answer": "甲"}]]]', "1 choices; there must be 2 to 4"),
        ('[[["文"], [{"question": "?", "choice": ["甲", "乙"], "answer": "丙"}]]]', "the answer '丙' is none of"),
        ('[[["文"], [{"question": "?", "choice": ["甲", "乙"]}]]]', "no key 'answer'"),
        ('[[["\\ud800"], []]]', "line 1, document 1: 'lines' holds half a surrogate pair at character 0"),
        ('[[[1], [{"question": "?"}]]]', "line 1, document 1: 'lines' must be a list of strings"),
        ('[[["文"], []]\n,\n[["文"], [}', "line 3: not JSON"),
        ('[[["文"], []]', "line 1: not a JSON array"),
        ('[[["文"], []]]\n[]', "line 1: not a JSON array"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[]", "holds no examples of c3"),
    ],
)
def test_bad_c3_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "d-train.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_examples(find_task("c3"), path, "train")
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_chid_of_clue(tmp_path: Path, packed: bool) -> None:
    task = find_task("chid")
    path = write_lines(tmp_path / "dev.json", CHID)
    write_lines(tmp_path / "dev_answer.json", ANSWERS)
    if packed:
        for file in (path, tmp_path / "dev_answer.json"):
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
        path = Path(f"{path}.gz")
    examples = read_examples(task, path, "dev")
    assert [e.answer for e in examples] == [1, 0, 9]
    assert [e.id for e in examples] == list(ANSWERS)
    assert [e.blank for e in examples] == [0, 1, 0]
    assert examples[0].pieces == examples[1].pieces == ("他在", "，等着", "的结果。")
    assert examples[0].candidates == tuple(IDIOMS)
    assert len({e.row for e in examples}) == 1
    tests = read_examples(task, path, "test")
    assert [e.answer for e in tests] == [None] * 3
    chosen = [Chosen(choice, ()) for choice in (3, 2, 0)]
    assert json.loads(task.submission(tests, chosen)) == dict(zip(ANSWERS, (3, 2, 0), strict=True))


def test_chid_of_fewclue(tmp_path: Path) -> None:
    task = find_task("chid")
    path = write_lines(tmp_path / "train.json", FEW, {**FEW, "id": 25, "content": "#idiom#。", "answer": 0})
    examples = read_examples(task, path, "train")
    assert [(e.answer, e.id, e.pieces) for e in examples] == [(6, 24, ("大功告成，", "。")), (0, 25, ("", "。"))]
    assert len({e.row for e in examples}) == 2
    assert task.submission(examples, [Chosen(5, ()), Chosen(1, ())]) == '{"id":24,"answer":5}\n{"id":25,"answer":1}\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**FEW, "answer": 7}, "the answer 7 of #idiom# is no index of 7 candidates"),
        ({**FEW, "answer": "1"}, "the answer '1' of #idiom# is no index"),
        ({key: value for key, value in FEW.items() if key != "answer"}, "no key 'answer'"),
        ({**FEW, "candidates": ["守株待兔"]}, "'candidates' must hold at least two idioms"),
        ({**FEW, "candidates": "守株待兔"}, "'candidates' must be a list of strings"),
        ({**FEW, "content": "没有空。"}, "no #idiom...# in 'content'"),
        ({**FEW, "content": "#idiom##idiom#"}, "more than one #idiom...# in 'content'"),
        ({**FEW, "content": 3}, "'content' must be a string"),
        ({**CHID, "content": ["#idiom000010#"]}, "the answer None of #idiom000010# is no index of 10"),
        ({**CHID, "content": [1]}, "'content' must be a list of strings"),
    ],
)
def test_bad_chid_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "train.json", CHID, row)
    write_lines(tmp_path / "train_answer.json", ANSWERS)
    with pytest.raises(UserError) as error:
        read_examples(find_task("chid"), path, "train")
    assert f"{path}, line 2: {message}" in str(error.value)


def test_chid_without_its_answers_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.json", CHID)
    with pytest.raises(UserError, match=r"has its answers in train_answer\.json, which is not beside it"):
        read_examples(find_task("chid"), path, "train")


def test_race_folder_and_lines(tmp_path: Path) -> None:
    task = find_task("race")
    middle = {**RACE, "id": "middle3.txt", "questions": ["Who?"], "options": RACE["options"][:1], "answers": ["A"]}
    write_lines(tmp_path / "dev" / "high" / "17.txt", RACE)
    write_lines(tmp_path / "dev" / "middle" / "3.txt", middle)
    write_lines(tmp_path / "train.jsonl", RACE, middle)
    files = find_files(TaskConfig(task="race", data_dir=str(tmp_path)), trained=True)
    assert (files.train[0].name, files.dev[0].name) == ("train.jsonl", "dev")
    dev = read_examples(task, files.dev[0], "dev")
    assert dev == read_examples(task, files.train[0], "train")
    article = RACE["article"]
    assert dev[0].inputs[1] == ("The sea is blue and blue .", article)
    assert dev[1].inputs[3] == ("What did Tom see? a pig", article)
    assert [(e.answer, e.group, e.choices) for e in dev] == [(1, "high", 4), (3, "high", 4), (0, "middle", 4)]
    assert task.scores(task, dev, [Chosen(choice, ()) for choice in (1, 0, 0)]) == {
        "accuracy": pytest.approx(2 / 3),
        "majority_accuracy": pytest.approx(1 / 3),
        "accuracy_high": 0.5,
        "accuracy_middle": 1.0,
    }
    hidden = {key: value for key, value in RACE.items() if key != "answers"}
    tests = read_examples(task, write_lines(tmp_path / "test.jsonl", hidden), "test")
    assert task.submission(tests, [Chosen(2, ()), Chosen(0, ())]) == (
        '{"id":"high17.txt-0","answer":"C"}\n{"id":"high17.txt-1","answer":"A"}\n'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["B", "E"]}, "line 2, question 2: the answer 'E' is none of A, B, C, D"),
        ({"answers": ["B"]}, "line 2: 'questions', 'options' and 'answers' must be lists of the same length"),
        ({"options": [["a", "b", "c", "d"], ["a", "b"]]}, "line 2, question 2: 2 options; there must be 4"),
        ({"options": [["a", "b", "c", "d"], "abcd"]}, "line 2, question 2: 'options' must be a list of strings"),
        ({"article": None}, "line 2: 'article' must be a string"),
    ],
)
def test_bad_race_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "train.jsonl", RACE, {**RACE, **change})
    with pytest.raises(UserError) as error:
        read_examples(find_task("race"), path, "train")
    assert f"{path}, {message}" in str(error.value)


def test_real_files_are_read_whole(shared_data: Path) -> None:
    for name, folder, train, positions in (
        ("c3", "C3", 5678, [954, 1028, 1056, 778]),
        ("chid", "CHID", 404, [286] * 7),
    ):
        task = find_task(name)
        files = find_files(TaskConfig(task=name, data_dir=str(shared_data / "tasks" / folder)), trained=True)
        assert sum(len(read_examples(task, path, "train")) for path in files.train) == train
        answers = [e.answer for path in files.dev for e in read_examples(task, path, "dev")]
        assert [answers.count(position) for position in range(len(positions))] == positions
