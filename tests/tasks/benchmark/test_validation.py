"""Archives for the servers: right ones of every form pass, and each known mistake is found."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import UserError
from megatron.tasks.benchmark.boards import BOARDS, CLUE_10, CLUE_11, FEWCLUE, Board, Result, task_folder
from megatron.tasks.benchmark.validation import validate_archive
from megatron.tasks.table import TASKS

ROWS = 10
TEXT = "王明在北京的天地书店工作。"
BY_FILE = {result.file: result for board in BOARDS for result in (*board.results, *board.optional)}


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_content(result: Result) -> str:
    """A test file of ROWS questions in the true form of the task; ids do not begin at 0."""
    ids = range(100, 100 + ROWS)
    if result.form == "answers":
        questions = [{"id": f"TEST_{n}_QUERY_0", "question": "谁？", "answers": []} for n in ids]
        return json.dumps(
            {"version": "1", "data": [{"paragraphs": [{"id": "TEST_0", "context": TEXT, "qas": questions}]}]}
        )
    if result.form == "blanks":
        tag = "#idiom{:06d}#".format
        content = [[f"他{tag(2 * n)}，又{tag(2 * n + 1)}。", "没有空。"] for n in range(ROWS // 2)]
        return lines([{"candidates": list("甲乙丙丁"), "content": passages} for passages in content])
    if result.form == "choices" and result.key == "answer":
        return lines([{"id": n, "candidates": list("甲乙丙丁"), "content": "他#idiom#。"} for n in ids])
    if result.form == "choices":
        return json.dumps([[[TEXT], [{"question": "谁？", "choice": list("甲乙丙丁"), "id": n}]] for n in ids])
    return lines([{result.id_key: n, "text": TEXT} for n in ids])


test_content.__test__ = False  # type: ignore[attr-defined]


def answer_rows(result: Result) -> list[dict[str, Any]] | dict[str, Any]:
    """Right answers to `test_content`: the rows of the lines, or the one object."""
    ids = range(100, 100 + ROWS)
    if result.form == "answers":
        return {f"TEST_{n}_QUERY_0": "王明" for n in ids}
    if result.form == "blanks":
        return {f"#idiom{n:06d}#": n % 4 for n in range(ROWS)}
    if result.form == "choices":
        return [{"id": n, result.key: n % 4} for n in ids]
    if result.form == "spans":
        spans = {"name": {"王明": [[0, 1]]}, "address": {"北京": [[3, 4]]}}
        return [{"id": n, "label": spans if n % 2 else {}} for n in ids]
    return [{result.id_key: n, "label": result.labels[n % len(result.labels)]} for n in ids]


def written(rows: list[dict[str, Any]] | dict[str, Any]) -> str:
    return lines(rows) if isinstance(rows, list) else json.dumps(rows, ensure_ascii=False, indent=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test files of all tasks."""
    root = tmp_path_factory.mktemp("data")
    for result in BY_FILE.values():
        folder = root / result.task.upper()
        if result.task.startswith("fewclue-"):
            folder = root / "FewCLUE" / result.task.removeprefix("fewclue-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / result.test_files[0]).write_text(test_content(result), encoding="utf-8")
    return root


def archive(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def findings(path: Path, files: dict[str, str | bytes], data: Path | None, board: Board = CLUE_11) -> list[str]:
    return [str(finding) for finding in validate_archive(archive(path / "a.zip", files), board, data).findings]


Check = Callable[..., list[str]]


@pytest.fixture
def check(tmp_path: Path, data: Path) -> Check:
    """What is found in a result file whose right rows were changed by a function, or are given as text."""

    def check(name: str, change: Callable[[Any], Any] | str | bytes, board: Board = CLUE_11) -> list[str]:
        content = change if isinstance(change, (str, bytes)) else written(change(answer_rows(BY_FILE[name])))
        return findings(tmp_path, {name: content}, data, board)

    return check


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_right_archive_has_no_findings(board: Board, data: Path, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        result.file: written(answer_rows(result)) for result in (*board.results, *board.optional)
    }
    report = validate_archive(archive(tmp_path / "a.zip", files), board, data)
    assert report.findings == []
    assert report.notes == [f"{name}: right" for name in files]  # with ids: every test file was found


def test_what_the_server_counts_is_counted_without_test_files(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip", {"tnews11_predict.json": lines([{"id": n, "label": "100"} for n in range(9999)])}
    )
    report = validate_archive(path, CLUE_11, None)
    (finding,) = report.findings
    assert "9999 lines, but the official test file has 10000 rows" in str(finding)
    assert "ids not compared: there is no test.json of tnews" in report.notes[0]
    (finding,) = validate_archive(archive(path, {"cmrc2018_predict.json": '{"A": "b"}'}), CLUE_11, None).findings
    assert "1 answers, but the official test file has 2000" in str(finding)
    ids = lines([{"id": n % 16, "label": "0"} for n in range(3861)])
    (finding,) = validate_archive(archive(path, {"afqmc_predict.json": ids}), CLUE_11, None).findings
    assert finding.line == 17


@pytest.mark.parametrize(
    ("name", "index"),
    [("tnews11_predict.json", "14"), ("ocnli_50k_predict.json", 2), ("cluewsc11_predict.json", "1")],
)
def test_class_index_for_label_code(check: Check, name: str, index: object) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows[:3] + [row | {"label": index} for row in rows[3:]]

    (found,) = check(name, change)
    assert found.startswith(f"{name}, line 4: {json.dumps(index)} is the index of a class, not a label (of ")
    assert found.endswith("(and 6 more like it)")


def test_labels_of_another_type_or_set(check: Check) -> None:
    name = "iflytek_predict.json"
    assert check(name, lambda rows: [row | {"label": int(row["label"])} for row in rows]) == [
        f'{name}, line 1: the label must be a string, "100", not 100 (and 9 more like it)'
    ]
    (found,) = check(name, lambda rows: [*rows[:-1], rows[-1] | {"label": "119"}])
    assert found == f'{name}, line 10: label "119" is none of 0 ... 118'
    (found,) = check("cluewsc11_predict.json", lambda rows: [rows[0] | {"label": True}, *rows[1:]])
    assert found == 'cluewsc11_predict.json, line 1: the label must be a string, "true", not true'


@pytest.mark.parametrize(
    ("wrong", "right", "board"),
    [
        ("ocnli_predict.json", "ocnli_50k_predict.json", CLUE_11),
        ("wsc_predict.json", "cluewsc11_predict.json", CLUE_11),
        ("tnews_predict.json", "tnews11_predict.json", CLUE_11),
        ("tnews10_predict.json", "tnews11_predict.json", CLUE_11),
        ("c3_predict.json", "c311_predict.json", CLUE_11),
        ("iflytek_predict.json", "iflytekf_predict.json", FEWCLUE),
    ],
)
def test_wrong_file_name(data: Path, tmp_path: Path, wrong: str, right: str, board: Board) -> None:
    found = findings(tmp_path, {wrong: written(answer_rows(BY_FILE[right]))}, data, board)
    message = f"not a name that {board.name} reads, so it would not be scored (did you mean {right}?)"
    assert found == [f"{wrong}: {message}", f"a.zip: no result file of {board.name} at its root"]


def test_ids_counted_within_a_batch(check: Check) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"id": n % 4} for n, row in enumerate(rows)]

    for name in ("afqmc_predict.json", "c311_predict.json", "cluener_predict.json"):
        (found, *_) = check(name, change)
        assert found == f"{name}, line 5: id 0 again, as in line 1: are ids counted within a batch?"


def test_ids_counted_from_zero(check: Check, data: Path) -> None:
    (found,) = check("csl_predict.json", lambda rows: [row | {"id": n} for n, row in enumerate(rows)])
    assert found == f"csl_predict.json, line 1: id 0, but row 1 of {data / 'CSL' / 'test.json'} has id 100"


def test_shuffled_order(check: Check, data: Path) -> None:
    (found,) = check("tnews11_predict.json", lambda rows: rows[:2] + rows[3:] + rows[2:3])
    test = data / "TNEWS" / "test.json"
    assert found == f"tnews11_predict.json, line 3: from here on in another order than {test}: id 103, there 102"


def test_missing_last_partial_batch(check: Check, data: Path) -> None:
    (found,) = check("cluener_predict.json", lambda rows: rows[:8])
    test = data / "CLUENER2020" / "test.json"
    assert found == (
        f"cluener_predict.json: 8 lines, but {test} has 10 rows; the last 2 are missing: "
        "was a last, smaller batch dropped?"
    )


def test_byte_order_mark(check: Check) -> None:
    for name in ("afqmc_predict.json", "cmrc2018_predict.json"):
        content = "\ufeff" + written(answer_rows(BY_FILE[name]))
        assert check(name, content) == [f"{name}, line 1: begins with a byte-order mark: write UTF-8 without BOM"]
    (found,) = check("afqmc_predict.json", b'{"id": 0, "label": "0"}\n{"id": "\xff"}')
    assert found.startswith("afqmc_predict.json, line 2: not UTF-8")


@pytest.mark.parametrize("folder", ["submission/", "submission\\"])
def test_folder_inside_the_archive(data: Path, tmp_path: Path, folder: str) -> None:
    files: dict[str, str | bytes] = {f"{folder}csl_predict.json": written(answer_rows(BY_FILE["csl_predict.json"]))}
    found = findings(tmp_path, files, data)
    assert found[0].endswith("csl_predict.json: in a folder: zip the files, not the folder that holds them")
    assert found[1] == "a.zip: no result file of clue1.1 at its root"


def test_lines_that_are_no_rows(check: Check) -> None:
    name = "afqmc_predict.json"
    for line, message in (
        ("\n", "blank"),
        ('{"id": 0, "label"\n', "not JSON; one object a line"),
        ("[0, 1]\n", "not a JSON object; one object a line"),
        ('{"label": "0"}\n', "no key 'id'"),
        ('{"id": 0, "prediction": "0"}\n', "no key 'label'"),
        ('{"id": null, "label": "0"}\n', "'id' must be an integer or a string"),
        ("[" * 100000 + "\n", "not JSON; one object a line"),
    ):
        content = written(answer_rows(BY_FILE[name])[:3]) + line  # type: ignore[index]
        assert check(name, content) == [f"{name}, line 4: {message}"]


def test_separators_inside_texts_end_no_line(check: Check) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"text": "a\u2028b\u0085c"} for row in rows]

    assert check("iflytek_predict.json", change) == []
    assert check("iflytek_predict.json", lambda rows: [row | {"id": str(row["id"])} for row in rows]) == []


def test_answers_in_one_object(check: Check, data: Path) -> None:
    name, test = "cmrc2018_predict.json", data / "CMRC2018" / "test.json"
    rows = answer_rows(BY_FILE[name])
    assert isinstance(rows, dict)
    as_lines = lines([{"id": id_, "answer": text} for id_, text in rows.items()])
    message = f"{name}: not one JSON object {{id: text}}: lines or a list are not read"
    assert check(name, as_lines) == check(name, "[]") == [message]
    last = "TEST_109_QUERY_0"
    assert check(name, lambda rows: {id_: text for id_, text in rows.items() if id_ != last}) == [
        f"{name}: no answer to 1 of the 10 ids of {test}, first {last}"
    ]
    assert check(name, lambda rows: rows | {"TEST_0_QUERY_1": ""}) == [
        f"{name}, line 12: TEST_0_QUERY_1 is not an id of {test}"
    ]
    assert check(name, lambda rows: rows | {last: ["王明"]}) == [
        f'{name}, line 11: {last}: the answer must be a text, not ["王明"]'
    ]
    assert check(name, written(rows)[:-2] + f',\n "{last}": "x"}}')[0].endswith(f"{last} a second time")


def test_idioms_in_one_object(check: Check) -> None:
    name = "chid11_predict.json"
    for value, message in (
        ("1", 'the number of the choice must be an integer, not "1"'),
        (True, "the number of the choice must be an integer, not true"),
        (4, "there is no choice 4 (there are 4, from 0)"),
        (-1, "there is no choice -1 (there are 4, from 0)"),
    ):
        found = check(name, lambda rows, value=value: rows | {"#idiom000002#": value})
        assert found == [f"{name}, line 4: #idiom000002#: {message}"]
    (found,) = check(name, lambda rows: {tag: number for tag, number in rows.items() if tag > "#idiom000003#"})
    assert "no answer to 4 of the 10 ids of" in found


@pytest.mark.parametrize(("name", "board"), [("c311_predict.json", CLUE_11), ("chidf_predict.json", FEWCLUE)])
def test_choices_are_integers(check: Check, name: str, board: Board) -> None:
    key = BY_FILE[name].key
    for value, message in (
        ("0", 'the number of the choice must be an integer, not "0"'),
        (4, "there is no choice 4 (there are 4, from 0)"),
    ):
        found = check(name, lambda rows, value=value: [*rows[:-1], rows[-1] | {key: value}], board)
        assert found == [f"{name}, line 10: {message}"]


def test_spans_inside_the_text(check: Check) -> None:
    name = "cluener_predict.json"
    for label, message in (
        ({"name": {"王明": [[0, 2]]}}, "span [0, 2] is '王明在', not '王明'; the last character is inside"),
        ({"name": {"王明": [[0, 99]]}}, "span [0, 99] is outside the text of 13 characters"),
        ({"name": {"王明": [[1, 0]]}}, "span [1, 0] is outside the text of 13 characters"),
        ({"person": {"王明": [[0, 1]]}}, "type 'person' is none of address, book, "),
        ({"name": {"王明": [0, 1]}}, "the label must be {type: {mention: [[first, last], ...]}}"),
        ({"name": {"王明": []}}, "the label must be {type: {mention: [[first, last], ...]}}"),
        (["王明"], "the label must be {type: {mention: [[first, last], ...]}}"),
    ):
        (found,) = check(name, lambda rows, label=label: [*rows[:4], rows[4] | {"label": label}, *rows[5:]])
        assert found.startswith(f"{name}, line 5: {message}")


def test_few_shot_splits(data: Path, tmp_path: Path) -> None:
    # the guide writes split files of tnews, iflytek, ocnli, chid, csl and cluewsc without the f
    names = {"tnews_predict_0.json": "tnewsf", "tnewsf_predict_all.json": "tnewsf", "bustm_predict_4.json": "bustm"}
    files: dict[str, str | bytes] = {
        name: written(answer_rows(BY_FILE[f"{stem}_predict.json"])) for name, stem in names.items()
    }
    assert findings(tmp_path, files, data, FEWCLUE) == []
    files["bustm_predict_5.json"] = files["bustm_predict_4.json"]
    assert findings(tmp_path, files, data, FEWCLUE)[0].startswith("bustm_predict_5.json: not a name")


def test_hostile_archives(data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("text.zip", "none.zip"):
        with pytest.raises(UserError, match=f"{name} is not a zip archive"):
            validate_archive(tmp_path / name, CLUE_11, data)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("csl_predict.json", b" " * (17 * 2**20))
    (finding,) = validate_archive(tmp_path / "bomb.zip", CLUE_11, data).findings
    assert "csl_predict.json: larger than" in str(finding)
    right = archive(tmp_path / "cut.zip", {"csl_predict.json": written(answer_rows(BY_FILE["csl_predict.json"]))})
    whole = right.read_bytes()
    content = bytearray(whole)
    content[content.index(b"PK\x01\x02") + 6] = 99  # a version of the format that there is not
    right.write_bytes(content)
    with pytest.raises(UserError, match="cut.zip is not a zip archive: zip file version 9.9"):
        validate_archive(right, CLUE_11, data)
    content = bytearray(whole)
    content[60] ^= 1
    right.write_bytes(content)
    (finding,) = validate_archive(right, CLUE_11, data).findings
    assert "csl_predict.json: cannot be unpacked: Bad CRC-32" in str(finding)
    many = "\n" * (2 * 10**6) + "x"
    assert findings(tmp_path, {"csl_predict.json": many}, data) == ["csl_predict.json: more than 1000000 lines"]
    huge = lines([{"id": n, "label": "9" * 5000} for n in range(100, 110)])
    assert 'line 1: label "999' in findings(tmp_path, {"csl_predict.json": huge}, data)[0]


def test_the_tasks_write_what_the_boards_read() -> None:
    tasks = {name: (task, test) for task in TASKS for test, name in task.test_files}
    for result in BY_FILE.values():
        if result.file not in tasks:
            continue
        task, test = tasks[result.file]
        assert task.name == result.task
        assert test in result.test_files
        if result.form == "labels":
            assert set(task.labels) == set(result.labels)
    assert len(FEWCLUE.results[1].labels) == 67
    assert {result.file for result in (*CLUE_11.results, *CLUE_10.results)} & set(tasks)


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("AFQMC", "afqmc"),
        ("cluewsc2020_public", "cluewsc2020"),
        ("cluener", "cluener2020"),
        ("FewCLUE/tnews", "fewclue-tnews"),
        ("FewCLUE/datasets/csl", "fewclue-csl"),
    ],
)
def test_folders_of_tasks(tmp_path: Path, folder: str, task: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert task_folder(tmp_path, task) == tmp_path / folder
    assert task_folder(tmp_path, "ocnli") is None
    if task.startswith("fewclue-"):
        assert task_folder(tmp_path / "FewCLUE", task) == tmp_path / folder
        assert task_folder(tmp_path, task.removeprefix("fewclue-")) is None  # the larger set of that name
