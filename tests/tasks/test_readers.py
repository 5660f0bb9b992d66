"""Task files: rows in the official forms (texts made up here), and every way a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import UserError
from megatron.tasks.config import TaskConfig
from megatron.tasks.inputs import find_files, read_examples
from megatron.tasks.kinds.classification import own_columns
from megatron.tasks.readers import MAX_LINE_BYTES, find_file, read_rows
from megatron.tasks.sets.clue import OWN_TEXTS
from megatron.tasks.table import find_task
from megatron.tasks.task import Task

TNEWS = {"label": "102", "label_desc": "news_entertainment", "sentence": "新片今晚上映", "keywords": "新片,电影院"}
AFQMC = {"sentence1": "怎么还款", "sentence2": "如何提前还款", "label": "1"}
IFLYTEK = {"label": "70", "label_des": "工具", "sentence": "一个记事本应用"}
NLI = {"sentence1": "他在河边钓鱼", "sentence2": "他在室外", "label": "entailment"}
OCNLI = {"level": "easy", **NLI, "label0": None, "label1": None, "genre": "lit", "prem_id": "lit_1", "id": 7}
WSC = {
    "target": {"span2_index": 8, "span1_index": 0, "span1_text": "小猫", "span2_text": "它"},
    "idx": 3,
    "label": "true",
    "text": "小猫看见了小鸟，它很想玩。",
}
CSL = {"id": 1, "abst": "本文研究了桥梁的振动。", "keyword": ["桥梁", "振动", "有限元"], "label": "0"}


def write_lines(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


@pytest.mark.parametrize(
    ("name", "row", "texts", "label"),
    [
        ("tnews", TNEWS, ("新片今晚上映",), "102"),
        ("afqmc", AFQMC, ("怎么还款", "如何提前还款"), "1"),
        ("iflytek", IFLYTEK, ("一个记事本应用",), "70"),
        ("cmnli", NLI, ("他在河边钓鱼", "他在室外"), "entailment"),
        ("ocnli", OCNLI, ("他在河边钓鱼", "他在室外"), "entailment"),
        ("cluewsc2020", WSC, ("_小猫_看见了小鸟，[它]很想玩。",), "true"),
        ("csl", CSL, ("桥梁 振动 有限元", "本文研究了桥梁的振动。"), "0"),
    ],
)
def test_official_row(tmp_path: Path, name: str, row: dict[str, Any], texts: tuple[str, ...], label: str) -> None:
    task = find_task(name)
    (example,) = read_examples(task, write_lines(tmp_path / "train.json", row), "train")
    assert example.texts == texts
    assert example.label is not None
    assert task.labels[example.label] == label

    test_row = {key: value for key, value in row.items() if key not in ("label", "label_desc", "label_des")}
    (example,) = read_examples(task, write_lines(tmp_path / "test.json", {**test_row, "id": 2415}), "test")
    assert (example.texts, example.label, example.id) == (texts, None, 2415)


def test_integer_labels_and_string_ids_of_fewclue(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train_0.json", {**TNEWS, "label": 116, "id": 5})
    task = find_task("tnews")
    assert [task.labels[e.label or 0] for e in read_examples(task, path, "train")] == ["116"]
    path = write_lines(tmp_path / "test.json", {"id": "0", "sentence": "标题"})
    assert read_examples(task, path, "test")[0].id == "0"


def test_pronoun_before_the_noun_is_marked_right(tmp_path: Path) -> None:
    row = {
        "target": {"span2_index": 2, "span1_index": 6, "span1_text": "老王", "span2_text": "他"},
        "text": "因为他来了，老王笑了。",
        "id": 0,
    }
    (example,) = read_examples(find_task("cluewsc2020"), write_lines(tmp_path / "test.json", row), "test")
    assert example.texts == ("因为[他]来了，_老王_笑了。",)


def test_wrong_span_is_named(tmp_path: Path) -> None:
    target = {**WSC["target"], "span1_index": 1}  # type: ignore[dict-item]
    path = write_lines(tmp_path / "train.json", WSC, {**WSC, "target": target})
    with pytest.raises(UserError, match=r"train\.json, line 2: span1_text '小猫'"):
        read_examples(find_task("cluewsc2020"), path, "train")


@pytest.mark.parametrize("name", ["ocnli", "cmnli"])
def test_rows_without_agreed_label_are_left_out_but_never_in_test_files(tmp_path: Path, name: str) -> None:
    rows = [{**NLI, "id": n, "label": label} for n, label in enumerate(("-", "neutral", "-", "contradiction"))]
    path = write_lines(tmp_path / "any.json", *rows)
    task = find_task(name)
    for split in ("train", "dev"):
        labels = [task.labels[e.label or 0] for e in read_examples(task, path, split)]  # type: ignore[arg-type]
        assert labels == ["neutral", "contradiction"]
    assert [e.id for e in read_examples(task, path, "test")] == [0, 1, 2, 3]


def test_lines_end_at_newline_alone(tmp_path: Path) -> None:
    texts = ["一\u2028二\u0085三", "四\x0b五\x1c六", "\ufeff七\u200b八", "九\\r十"]
    rows = [f'{{"label": "0", "sentence": "{text}"}}\r' for text in texts]
    (tmp_path / "dev.json").write_bytes("\n".join(rows).replace("\x0b", "\\u000b").replace("\x1c", "\\u001c").encode())
    read = [e.texts[0] for e in read_examples(find_task("iflytek"), tmp_path / "dev.json", "dev")]
    assert read == ["一\u2028二\u0085三", "四\x0b五\x1c六", "\ufeff七\u200b八", "九\r十"]


def test_gzip_and_file_names(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "dev.json.gz", "wb") as file:
        file.write(json.dumps(AFQMC).encode() + b"\n")
    found = find_file(tmp_path, "dev.json")
    assert found == tmp_path / "dev.json.gz"
    assert len(read_examples(find_task("afqmc"), found, "dev")) == 1
    assert find_file(tmp_path, "test.json") is None
    content = found.read_bytes()
    found.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(found))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": "105", "sentence": "x"}', "label '105' is none of the 15 of tnews: 100, 101, 102"),
        ('{"label": true, "sentence": "x"}', "'label' must be a string or an integer"),
        ('{"label": "100"}', "no key 'sentence'; the row has 'label'"),
        ('{"sentence": "x"}', "no key 'label'"),
        ('{"label": "100", "sentence": 5}', "'sentence' must be a string, not 5"),
        ('{"label": "100", "sentence": "x"', "not JSON"),
        ('["label"]', "not a JSON object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "train.json", TNEWS, "", line)
    with pytest.raises(UserError) as error:
        read_examples(find_task("tnews"), path, "train")
    assert f"{path}, line 3: " in str(error.value)
    assert message in str(error.value)


def test_wrong_keyword_list_and_missing_test_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: 'keyword' must be a list of strings"):
        read_examples(find_task("csl"), write_lines(tmp_path / "a.json", {**CSL, "keyword": "桥梁"}), "train")
    with pytest.raises(UserError, match="line 1: no key 'id'"):
        read_examples(find_task("tnews"), write_lines(tmp_path / "b.json", {"sentence": "x"}), "test")


def test_unreadable_files(tmp_path: Path) -> None:
    task = find_task("tnews")
    (tmp_path / "bytes.json").write_bytes(b'{"label": "100", "sentence": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"bytes\.json, line 1: not UTF-8"):
        read_examples(task, tmp_path / "bytes.json", "train")
    (tmp_path / "long.json").write_bytes(b" " * (MAX_LINE_BYTES + 1))
    with pytest.raises(UserError, match="longer than"):
        read_examples(task, tmp_path / "long.json", "train")
    (tmp_path / "empty.json").write_bytes(b"\n")
    with pytest.raises(UserError, match="holds no examples of tnews"):
        read_examples(task, tmp_path / "empty.json", "train")
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(task, tmp_path, "train")


def classification(path: Path, **options: Any) -> Task:
    return own_columns(OWN_TEXTS, path, TaskConfig(**options))


@pytest.mark.parametrize(
    ("name", "content", "texts", "labels"),
    [
        ("a.tsv", 'label\ttext_a\n1\t"好吃\n0\t难吃"\n', [('"好吃',), ('难吃"',)], ["1", "0"]),
        ("b.tsv", "text_a\ttext_b\tlabel\r\n你好\t您好\tsame\r\n你好\t再见\tother\r\n",
         [("你好", "您好"), ("你好", "再见")], ["same", "other"]),
        ("c.csv", '\ufefflabel,text\n1,"好吃, 很\n\n好"\n\n0,"他说""不"""\n',
         [("好吃, 很\n\n好",), ('他说"不"',)], ["1", "0"]),
        ("d.jsonl", '{"id": 9, "sentence": "好", "label": "yes"}\n{"id": 8, "sentence": "坏", "label": "no"}\n',
         [("好",), ("坏",)], ["yes", "no"]),
    ],
)  # fmt: skip
def test_classification_of_own_files(
    tmp_path: Path, name: str, content: str, texts: list[tuple[str, ...]], labels: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    task = classification(path)
    assert task.labels == tuple(sorted(labels))
    examples = read_examples(task, path, "train")
    assert [e.texts for e in examples] == texts
    assert [task.labels[e.label or 0] for e in examples] == labels


def test_classification_columns_labels_and_ids(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.tsv", "n\ttitle\tbody\ty", "1\ta\tb\tyes", "2\tc\td\tno")
    task = classification(path, text_columns=("body",), label_column="y", labels=("yes", "no", "maybe"))
    assert task.labels == ("yes", "no", "maybe")
    assert [e.texts for e in read_examples(task, path, "dev")] == [("b",), ("d",)]
    test = write_lines(tmp_path / "test.tsv", "body", "x", "z")
    assert [e.id for e in read_examples(task, test, "test")] == [0, 1]
    test = write_lines(tmp_path / "test2.tsv", "id\tbody", "q7\tx")
    assert [e.id for e in read_examples(task, test, "test")] == ["q7"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\tclass\na\tb\n", {}, "line 2: no column 'label'"),
        ("a\tb\tc\tlabel\n1\t2\t3\t4\n", {}, "the text columns are ['a', 'b', 'c'], the label's is 'label'; name"),
        ("a\tlabel\n1\t2\n", {"text_columns": ("z",)}, "no column 'z'"),
        ("a\tlabel\n1\t2\n", {"text_columns": ("label",)}, "the text columns are ['label'], the label's is 'label'"),
        ("a\tlabel\n1\t2\n", {"text_columns": ("a", "a")}, "the text columns are ['a', 'a'], the label's is"),
        ("a\tlabel\n1\t2\n", {"labels": ("2", "3", "2")}, "the labels 2, 3, 2 are not all different"),
        ("a\tlabel\n1\t2\n", {}, "only the label '2'"),
        ("a\ta\n1\t2\n", {}, "line 1: a column name occurs twice"),
        ("a\tlabel\n1\t2\t3\n", {}, "line 2: 3 columns, but the header names 2"),
        ("a\tlabel\n", {}, "holds no rows"),
    ],
)
def test_wrong_own_files(tmp_path: Path, content: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(UserError) as error:
        classification(tmp_path / "train.tsv", **options)
    assert message in str(error.value)
    assert "train.tsv" in str(error.value)


def test_unclosed_csv_quote_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('label,text\n1,"open\n')
    with pytest.raises(UserError, match=r"train\.csv, line 2: not CSV"):
        classification(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("name", "folder", "train", "dev"),
    [
        ("tnews", "TNEWS", 9470, 3000),
        ("afqmc", "AFQMC", 10000, 3000),
        ("iflytek", "IFLYTEK", 3024, 1749),
        ("cmnli", "CMNLI", 9235, 3000),
        ("ocnli", "OCNLI", 9985, 2950),  # 10000 and 3000 rows, of which 15 and 50 have no agreed label
        ("cluewsc2020", "CLUEWSC2020", 1239, 304),
        ("csl", "CSL", 159, 2838),
    ],
)
def test_real_files_are_read_whole(shared_data: Path, name: str, folder: str, train: int, dev: int) -> None:
    task = find_task(name)
    files = find_files(TaskConfig(task=name, data_dir=str(shared_data / "tasks" / folder)), trained=True)
    for split, paths, count in (("train", files.train, train), ("dev", files.dev, dev)):
        examples = [example for path in paths for example in read_examples(task, path, split)]  # type: ignore[arg-type]
        assert len(examples) == count
        assert all(e.label is not None and all(e.texts) for e in examples)
