"""Files of entities: rows in the official forms (texts made up here), and every way a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import UserError
from megatron.tasks.config import TaskConfig
from megatron.tasks.inputs import find_files, read_examples
from megatron.tasks.kinds.tagging import TaggedText, entity_lines
from megatron.tasks.kinds.tags import Entity, types_of
from megatron.tasks.sets.tagging import TAGGING_TASKS
from megatron.tasks.sets.tagging_files import own_tags
from megatron.tasks.table import find_task
from megatron.tasks.task import Split

CLUENER = {
    "text": "王明和王明去天河公园",
    "label": {"name": {"王明": [[0, 1], [3, 4]]}, "scene": {"天河公园": [[6, 9]]}},
}
NAMES = [Entity(0, 1, "name"), Entity(3, 4, "name"), Entity(6, 9, "scene")]


def read(task: str, path: Path, content: str, split: Split = "train") -> list[TaggedText]:
    path.write_bytes(content.encode())
    return read_examples(find_task(task), path, split)


def test_label_sets_and_file_names() -> None:
    tasks = {task.name: task for task in TAGGING_TASKS}
    sizes = {"cluener2020": (10, 21), "msra_ner": (3, 7), "peopledaily_ner": (3, 7), "weibo_ner": (8, 17)}
    for name, (types, tags) in {**sizes, "resume_ner": (8, 33)}.items():
        task = tasks[name]
        assert len(types_of(task.labels)) == types
        assert len(set(task.labels)) == task.kind.num_outputs(task) == tags
        assert task.labels[0] == "O"
    assert tasks["cluener2020"].test_files == (("test.json", "cluener_predict.json"),)
    assert tasks["weibo_ner"].labels[1:5] == ("B-GPE.NAM", "I-GPE.NAM", "B-GPE.NOM", "I-GPE.NOM")


def test_cluener(tmp_path: Path) -> None:
    lines = [CLUENER, {"text": "没有", "label": {}}]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    first, second = read("cluener2020", tmp_path / "train.json", content)
    assert first == TaggedText("王明和王明去天河公园", tuple(NAMES), 0)
    assert second == TaggedText("没有", (), 1)
    (example,) = read("cluener2020", tmp_path / "test.json", '{"id": 7, "text": "王明"}\n', "test")
    assert example == TaggedText("王明", None, 7)


def test_submission_has_the_form_of_cluener() -> None:
    examples = [TaggedText(str(CLUENER["text"]), None, 5), TaggedText("没有", None, "6")]
    first, second = entity_lines(examples, [NAMES, ()]).splitlines()
    assert first == json.dumps({"id": 5, "label": CLUENER["label"]}, ensure_ascii=False, separators=(",", ":"))
    assert second == '{"id":"6","label":{}}'


def changed(**values: Any) -> str:
    return json.dumps({**CLUENER, **values}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "王明"}', "no key 'label'"),
        ('{"label": {}}', "no key 'text'"),
        (changed(text=""), "'text' is empty"),
        (changed(text=["王"]), "'text' must be a string"),
        (changed(label=[]), "'label' must be an object"),
        (changed(label={"person": {"王明": [[0, 1]]}}), "type 'person' is none of the 10 of cluener2020: address, "),
        (changed(label={"": {"王明": [[0, 1]]}}), "'' is no name of a type"),
        (changed(label={"a\nb": {"王明": [[0, 1]]}}), "'a\\nb' is no name of a type"),
        (changed(label={"name": [[0, 1]]}), "type 'name' must have an object of mentions"),
        (changed(label={"name": {"王明": [0, 1]}}), "must be a list of [first, last], not [0, 1]"),
        (changed(label={"name": {"王明": [[0, 1.0]]}}), "must be a list of [first, last]"),
        (changed(label={"name": {"王明": [[False, True]]}}), "must be a list of [first, last]"),
        (changed(label={"name": {"王明": [[0, 1, 2]]}}), "must be a list of [first, last]"),
        (changed(label={"name": {"王明": [[0, 10]]}}), "'王明' at [0, 10] is outside the 10 characters of 'text'"),
        (changed(label={"name": {"王明": [[-10, -9]]}}), "is outside the 10 characters"),
        (changed(label={"name": {"王明": [[1, 0]]}}), "is outside the 10 characters"),
        (changed(label={"name": {"王明": [[0, 2]]}}), "does not stand at [0, 2] (the last is included) of 'text'"),
        (changed(label={"name": {"": [[0, 0]]}}), "'' does not stand at [0, 0]"),
    ],
)
def test_bad_spans_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read("cluener2020", tmp_path / "dev.json", json.dumps(CLUENER) + "\n" + row + "\n", "dev")
    assert str(error.value).startswith(f"{tmp_path / 'dev.json'}, line 2: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("task", "content", "text", "entities"),
    [
        ("msra_ner", "到\tO\n北\tB-LOC\n京\tI-LOC\n\n", "到北京", [Entity(1, 2, "LOC")]),
        ("peopledaily_ner", "到 O\r\n北 B-LOC\r\n京 I-LOC\r\n\r\n", "到北京", [Entity(1, 2, "LOC")]),
        (
            "resume_ner",
            "王 B-NAME\n小 M-NAME\n明 E-NAME\n汉 S-RACE\n族 O",
            "王小明汉族",
            [Entity(0, 2, "NAME"), Entity(3, 3, "RACE")],
        ),
        (
            "weibo_ner",
            "50\tO\n王0\tB-PER.NAM\n明1\tI-PER.NAM\n\ufffd\ufffd0\tO\n人0\tB-PER.NOM\n",
            "5王明\ufffd\ufffd人",
            [Entity(1, 2, "PER.NAM"), Entity(5, 5, "PER.NOM")],
        ),
    ],
)
def test_official_columns(tmp_path: Path, task: str, content: str, text: str, entities: list[Entity]) -> None:
    assert read(task, tmp_path / "train.txt", content) == [TaggedText(text, tuple(entities), 0)]
    assert read(task, tmp_path / "test.txt", content, "test") == [TaggedText(text, None, 0)]


def test_texts_end_at_blank_lines_of_which_there_may_be_several(tmp_path: Path) -> None:
    content = "\ufeff\n\n甲 O\n \n\t\n乙 B-LOC\n\n\n丙 O"
    found = read("msra_ner", tmp_path / "train.txt", content)
    assert [(example.text, example.id) for example in found] == [("甲", 0), ("乙", 1), ("丙", 2)]


def test_characters_that_are_spaces_are_kept(tmp_path: Path) -> None:
    content = "甲 B-PER\n  I-PER\n乙 I-PER\n\u3000 O\n\u2028 O\n"
    (example,) = read("msra_ner", tmp_path / "a.txt", content)
    assert example == TaggedText("甲 乙\u3000\u2028", (Entity(0, 2, "PER"),), 0)
    (example,) = read("msra_ner", tmp_path / "b.txt", content.replace(" ", "\t").replace("\t\t", " \t"))
    assert example.text == "甲 乙\u3000\u2028"
    (example,) = read("msra_ner", tmp_path / "c.txt", "甲\tO\n\t\tO\n乙\tO\n")
    assert example.text == "甲\t乙"


def test_orphan_tags_begin_entities(tmp_path: Path) -> None:
    content = "甲 I-PER\n乙 I-PER\n丙 I-LOC\n丁 O\n戊 I-LOC\n己 B-LOC\n"
    (example,) = read("msra_ner", tmp_path / "train.txt", content)
    expected = (Entity(0, 1, "PER"), Entity(2, 2, "LOC"), Entity(4, 4, "LOC"), Entity(5, 5, "LOC"))
    assert example.entities == expected
    (example,) = read("resume_ner", tmp_path / "train.bmes", "甲 M-ORG\n乙 E-ORG\n丙 E-ORG\n丁 B-EDU\n戊 O\n")
    assert example.entities == (Entity(0, 1, "ORG"), Entity(2, 2, "ORG"), Entity(3, 3, "EDU"))


def test_words_and_further_columns(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- O O\n\nMr NNP B-NP O\nA NNP I-NP B-PER\nSmith NNP I-NP I-PER\n去 VV O O\n2 CD O O\n0 CD O O\n"
    )
    (_, example) = read("msra_ner", tmp_path / "train.txt", content)
    assert example == TaggedText("Mr A Smith去20", (Entity(3, 9, "PER"),), 1)


def test_test_files_need_no_tags(tmp_path: Path) -> None:
    found = read("msra_ner", tmp_path / "test.txt", "甲\n\u3000\n乙\n\n丙\tB-UNKNOWN\n", "test")
    assert found == [TaggedText("甲\u3000乙", None, 0), TaggedText("丙", None, 1)]


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("msra_ner", "京", "no tag after '京'"),
        ("msra_ner", "京\t", "no tag after '京'"),
        ("msra_ner", "\tB-LOC", "no character before the tag 'B-LOC'"),
        ("msra_ner", "京\tB-GPE", "tag 'B-GPE' is none of the 7 of msra_ner: O, B-LOC, I-LOC"),
        ("msra_ner", "京\tM-LOC", "tag 'M-LOC' is none of the 7"),
        ("weibo_ner", "京\tO", "column 1 must be a character and the digit of its place in its word, not '京'"),
        ("weibo_ner", "0\tO", "column 1 must be a character and the digit"),
        ("resume_ner", "京 I-LOC", "tag 'I-LOC' is none of the 33 of resume_ner"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, task: str, line: str, message: str) -> None:
    path = tmp_path / "dev.txt"
    with pytest.raises(UserError) as error:
        read(task, path, f"北0\tO\n\n北0\tO\n{line}\n", "dev")
    assert str(error.value).startswith(f"{path}, line 4: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("京 LOC", "tag 'LOC' is neither O nor B-"),
        ("京 B-", "tag 'B-' is neither O nor B-"),
        ("京 IB-LOC", "tag 'IB-LOC' is neither O nor B-"),
        ("京 M-LOC", "tag 'M-LOC' is of another scheme than those before it"),
    ],
)
def test_bad_tags_of_own_files_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"北 B-LOC\n南 I-LOC\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        own_tags(find_task("tagging"), path, TaskConfig())
    assert str(error.value).startswith(f"{path}, line 4: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("train.txt", "甲 B-b\n乙 O\n\n丙 B-a\n", ("O", "B-a", "I-a", "B-b", "I-b")),
        ("train.bmes", "甲 S-b\n", ("O", "B-b", "M-b", "E-b", "S-b")),
        ("train.conll", "甲\tB-b\n乙\tI-b\n丙\tE-b\n", ("O", "B-b", "I-b", "E-b", "S-b")),
        ("train.txt", "甲 I-x-y\n乙 O\n", ("O", "B-x-y", "I-x-y")),
        ("train.jsonl", json.dumps(CLUENER) + "\n", ("O", "B-name", "I-name", "B-scene", "I-scene")),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_own_files_say_what_the_tags_are(
    tmp_path: Path, name: str, content: str, labels: tuple[str, ...], compressed: bool
) -> None:
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
    task = own_tags(find_task("tagging"), path, TaskConfig())
    assert task.labels == labels
    assert read_examples(task, path, "train")[0].entities
    saved = own_tags(find_task("tagging"), path, TaskConfig(labels=("O", "B-c", "I-c")))
    assert saved.labels == ("O", "B-c", "I-c")


@pytest.mark.parametrize(("name", "content"), [("a.txt", "甲 O\n"), ("a.json", '{"text": "甲", "label": {}}')])
def test_own_files_without_entities_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="has no entities"):
        own_tags(find_task("tagging"), tmp_path / name, TaskConfig())


@pytest.mark.parametrize(
    ("name", "folder", "train", "dev"),
    [
        ("cluener2020", "CLUENER2020", (10000, 22212), (1343, 3072)),
        ("msra_ner", "MSRA_NER", (10000, 14906), (3000, 3993)),
        ("peopledaily_ner", "PeopleDaily_NER", (7000, 11385), (2318, 1951 + 984 + 884)),
        ("weibo_ner", "Weibo_NER", (1209, 1671), (270, 389)),
        ("resume_ner", "Resume_NER", (3802, 13404), (463, 1497)),
    ],
)
def test_real_files_are_read_whole(
    shared_data: Path, name: str, folder: str, train: tuple[int, int], dev: tuple[int, int]
) -> None:
    files = find_files(TaskConfig(task=name, data_dir=str(shared_data / "tasks" / folder)), trained=True)
    splits: tuple[tuple[Split, tuple[Path, ...], tuple[int, int]], ...]
    splits = (("train", files.train, train), ("dev", files.dev, dev))
    for split, (path,), expected in splits:
        examples = read_examples(find_task(name), path, split)
        assert (len(examples), sum(len(example.entities) for example in examples)) == expected
