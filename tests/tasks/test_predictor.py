"""Predictions: those of the run that made the checkpoint, from Python and from the command line as typed."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron.checkpoint import json_bytes, load_tensors, read_config, save_checkpoint, to_huggingface
from megatron.config import model_from_dict
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.descriptions import description
from megatron.tasks.finetune import finetune
from megatron.tasks.predictor import Predictor, load_predictor
from megatron.tasks.readers import MAX_LINE_BYTES, read_rows
from megatron.tasks.table import TASKS, find_task
from tests.commands import ROOT, run
from tests.tasks.tiny import CHARACTERS, write_checkpoint, write_sentiment
from tools import predict

SINGLE = ParallelContext.single()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with texts in a column `text`, labels bad and good."""
    folder = tmp_path_factory.mktemp("run")
    write_sentiment(folder / "data", train=120, dev=70, test=40)
    finetune(
        FinetuneConfig(
            task=TaskConfig(task="classification", data_dir=str(folder / "data"), predict=True),
            source=ModelSourceConfig(
                pretrained_checkpoint=str(write_checkpoint(folder / "pretrained")), output_dir=str(folder / "out")
            ),
            tuning=TuningConfig(epochs=6, global_batch_size=15, lr=5e-3, seq_length=20),
        ),
        SINGLE,
    )
    return folder / "out"


@pytest.fixture(scope="module")
def best(output: Path) -> Path:
    return output / "best"


@pytest.fixture(scope="module")
def predictor(best: Path) -> Predictor:
    return load_predictor(best, device="cpu", batch_size=7)


def fine_tuned(folder: Path, name: str) -> Path:
    """A checkpoint of a classification task with a random head."""
    task = find_task(name)
    pretrained = write_checkpoint(folder / "pretrained") / "iter_0000000"
    model = BertForTask(
        model_from_dict(read_config(pretrained)["model"]), SINGLE, num_outputs=len(task.labels), dropout=0.0
    )
    initialize(model, 1)
    files = {
        "config.json": json_bytes({**read_config(pretrained), "task": description(task, 32)}),
        "train_state.json": json_bytes({}),
        "vocab.txt": (pretrained / "vocab.txt").read_bytes(),
    }
    pieces = parameter_pieces(model.named_parameters())
    return save_checkpoint(folder / "best", 1, model=pieces, optimizer=[], files=files, context=SINGLE)


# From Python


def test_predictions_are_those_of_the_run(output: Path, predictor: Predictor) -> None:
    dev = list(read_rows(output.parent / "data" / "dev.tsv"))
    told: list[int] = []
    found = predictor([row.text("text") for row in dev], progress=told.append)
    assert sum(told) == len(dev) == 70
    scores = json.loads((output / "dev_metrics.json").read_text())
    right = [row.text("label") == prediction["label"] for row, prediction in zip(dev, found, strict=True)]
    assert sum(right) / len(right) == scores["accuracy"] > scores["majority_accuracy"]
    of_labels = [found[row]["probabilities"][dev[row].text("label")] for row in range(len(dev))]
    assert -sum(map(math.log, of_labels)) / len(dev) == pytest.approx(scores["loss"], rel=1e-5)
    for prediction in found:
        assert list(prediction["probabilities"]) == ["bad", "good"]
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].__getitem__)


def test_texts_tuples_and_rows_are_alike_and_keep_their_order(predictor: Predictor) -> None:
    texts = [CHARACTERS[n % 10 :][: 1 + n % 7] for n in range(30)]
    one = predictor(texts)
    assert one == predictor([(text,) for text in texts]) == predictor([{"text": text, "other": 1} for text in texts])
    for text, prediction in zip(texts, one, strict=True):
        (alone,) = predictor([text])
        assert alone["label"] == prediction["label"]
        assert alone["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-6)
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("天地", "give a list"),
        ([("天", "地")], "items, line 1: 2 texts, but classification takes 1: text"),
        (["天", {"texts": []}], "items, line 2: 0 texts"),
        (["天", {"sentence": "天"}], "items, line 2: no key 'text'"),
        ([{"text": 5}], "'text' must be a string"),
        ([3], "item 1 is neither"),
        ([["天", None]], "item 1 is neither"),
    ],
)
def test_items_of_another_form_are_named(predictor: Predictor, items: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        predictor(items)
    assert message in str(error.value)


ROWS: dict[str, dict[str, Any]] = {
    "tnews": {"sentence": "天地人", "keywords": ""},
    "afqmc": {"sentence1": "天地人", "sentence2": "山水"},
    "csl": {"abst": "天地人", "keyword": ["金", "木水"]},
    "cluewsc2020": {
        "text": "天地人山",
        "target": {"span1_text": "天", "span1_index": 0, "span2_text": "人", "span2_index": 2},
    },
}
PLAIN = {"tnews": "天地人", "afqmc": ("天地人", "山水"), "csl": ("金 木水", "天地人"), "cluewsc2020": "_天_地[人]山"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_task_and_plain_texts_are_the_same_example(tmp_path: Path, name: str) -> None:
    predictor = load_predictor(fine_tuned(tmp_path, name), device="cpu")
    row, plain = predictor([ROWS[name], PLAIN[name]])
    assert row["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)
    assert set(row["probabilities"]) == set(find_task(name).labels)
    with pytest.raises(UserError, match=f"3 texts, but {name} takes"):
        predictor([("天", "地", "人")])


def test_tasks_of_texts_say_how_many() -> None:
    counts = {task.name: len(task.text_columns) for task in TASKS if task.kind.name == "classification"}
    assert counts["ocnli"] == counts["csl"] == 2
    assert counts["iflytek"] == counts["cluewsc2020"] == 1
    assert all(count in (1, 2) for count in counts.values())


def test_checkpoints_that_cannot_predict_are_named(best: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not fine-tuned"):
        load_predictor(write_checkpoint(tmp_path / "plain"))
    with pytest.raises(UserError, match="holds neither a checkpoint"):
        load_predictor(tmp_path / "none")
    with pytest.raises(UserError, match="device 'mars' cannot be used"):
        load_predictor(best, device="mars")
    (kept,) = best.glob("iter_*")
    saved = read_config(kept)
    model = BertForTask(model_from_dict(saved["model"]), SINGLE, num_outputs=2, dropout=0.0)
    load_tensors(kept, "model", parameter_pieces(model.named_parameters()), context=SINGLE)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"name": "colours"}, "the task 'colours' is unknown"),
        ({"head": "span"}, "has a head for classification, not for 'span'"),
        ({"seq_length": "x"}, "lacks its name or its seq_length"),
        ({"seq_length": True}, "lacks its name or its seq_length"),
        ({"seq_length": 65}, "seq_length 65 is above"),
        ({"labels": "bad"}, "labels of the task must be a list of strings"),
        ({"labels": ["a", "b", "c"]}, "task_head"),
    ]
    for number, (change, message) in enumerate(changes):
        files = {name: (kept / name).read_bytes() for name in ("vocab.txt", "train_state.json")}
        files["config.json"] = json_bytes({**saved, "task": {**saved["task"], **change}})
        pieces = parameter_pieces(model.named_parameters())
        folder = tmp_path / str(number)
        save_checkpoint(folder, 1, model=pieces, optimizer=[], files=files, context=SINGLE)
        with pytest.raises(UserError) as error:
            load_predictor(folder)
        assert message in str(error.value)


def test_the_exported_folder_predicts_alike(best: Path, predictor: Predictor, tmp_path: Path) -> None:
    to_huggingface(best, tmp_path / "hub")
    texts = ["天水火", "金木", "地"]
    assert load_predictor(tmp_path / "hub", device="cpu", batch_size=7)(texts) == predictor(texts)
    finetune(
        FinetuneConfig(
            task=TaskConfig(task="classification", data_dir=str(best.parent.parent / "data")),
            source=ModelSourceConfig(
                pretrained_checkpoint=str(tmp_path / "hub"), eval_only=True, output_dir=str(tmp_path / "out")
            ),
        ),
        SINGLE,
    )
    ours, theirs = (json.loads((path / "dev_metrics.json").read_text()) for path in (best.parent, tmp_path / "out"))
    assert theirs["accuracy"] == ours["accuracy"]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)


def test_a_classifier_of_others_predicts_as_transformers_does(tmp_path: Path) -> None:
    from tests.checkpoint.hub import hub_model, save_hub

    folder = save_hub(hub_model("bert", "ForSequenceClassification"), tmp_path / "theirs")
    texts = ["今天天气很好", "人民日报"]
    pipeline = transformers.pipeline("text-classification", str(folder), top_k=None, device="cpu")
    theirs = [{row["label"]: row["score"] for row in rows} for rows in pipeline(texts)]
    for mine, other in zip(load_predictor(folder, device="cpu")(texts), theirs, strict=True):
        assert mine["probabilities"] == pytest.approx(other, abs=1e-5)


# As typed


def test_a_file_comes_back_with_the_run_s_predictions(output: Path, best: Path, tmp_path: Path) -> None:
    test = list(read_rows(output.parent / "data" / "test.tsv"))
    with gzip.open(tmp_path / "in.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": row.values["id"], "text": row.values["text"], "n": 1}) + "\n" for row in test)
    expected = [json.loads(line) for line in (output / "classification_predict.json").read_text().splitlines()]
    files = ("--input", tmp_path / "in.jsonl.gz", "--output", tmp_path / "out.jsonl.gz")
    result = run("tools/predict.py", "--load", best, *files)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"40 predictions: {tmp_path / 'out.jsonl.gz'}"
    with gzip.open(tmp_path / "out.jsonl.gz", "rt", encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    assert [row["prediction"]["label"] for row in written] == [row["label"] for row in expected]
    kept = [{key: value for key, value in row.items() if key != "prediction"} for row in written]
    assert kept == [{"id": row.values["id"], "text": row.values["text"], "n": 1} for row in test]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl.gz", "out.jsonl.gz"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object, stdin: bytes = b"") -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    predict.main()


def test_bad_lines_are_named_or_left_out(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}'
    lines = [b'{"text": "\xe5\xa4\xa9"}', b"[1]", b'{"texts": ["a", "b"]}', b'{"text": "\xff"}', b"{", long]
    last = [b'{"text": "", "other": "\\ud800"}', b'{"text": "\\ud800"}']
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*lines, *last]))
    arguments = ("--load", best, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="in.jsonl, line 2: not a JSON object"):
        call(monkeypatch, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    call(monkeypatch, *arguments, "--skip-bad-lines")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in written] == ["天", ""]
    told = capsys.readouterr().err
    assert [told.count(f"line {number}:") for number in range(1, 9)] == [0, 1, 1, 1, 1, 1, 0, 1]
    assert written[1]["other"] == "\ud800"
    assert "2 predictions, 6 bad lines left out" in told


def test_a_table_comes_back_as_json(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.tsv").write_text("text\tlabel\n天水\tgood\n金\n木\tbad\n", encoding="utf-8")
    arguments = ("--load", best, "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="in.tsv, line 3: 1 columns"):
        call(monkeypatch, *arguments)
    call(monkeypatch, *arguments, "--skip-bad-lines")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["text"], row["label"]) for row in written] == [("天水", "good"), ("木", "bad")]
    assert {row["prediction"]["label"] for row in written} <= {"bad", "good"}


def test_pipes_and_progress(
    best: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "INTERVAL", 0.0)
    texts = [CHARACTERS[n % 10 :][: 1 + n % 3] for n in range(70)]
    stdin = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    call(monkeypatch, "--load", best, "--input", "-", "--batch-size", 1, stdin=stdin)
    out, err = capsys.readouterr()
    written = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in written] == texts
    assert [row["prediction"]["label"] for row in written] == [row["label"] for row in predictor(texts)]
    assert [line.split(" | ")[0] for line in err.splitlines()] == ["50 rows", "70 rows", "70 predictions"]
    assert predict.progress_line(20_000, 100_000, 40.0) == "20,000 of 100,000 rows | 500.0 rows/s | ETA 0:02:40"


def start(*arguments: object, stdin: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/predict.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_typed_texts(best: Path, predictor: Predictor) -> None:
    ours, theirs = pty.openpty()
    process = start("--load", best, stdin=theirs)
    os.close(theirs)
    os.write(ours, '天水火\n\n天\t地\n{"text": "金木"}\n\x04'.encode())
    out, err = process.communicate(timeout=100)
    os.close(ours)
    assert process.returncode == 0, err
    found = [json.loads(line) for line in out.replace("> ", "").splitlines() if "{" in line]
    assert [row["label"] for row in found] == [row["label"] for row in predictor(["天水火", "金木"])]
    assert "classification: type text, or a row as JSON; Ctrl-D ends" in err
    assert "error: items, line 1: 2 texts, but classification takes 1: text" in err


def test_piped_lines_are_answered_one_by_one(
    best: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "--load", best, stdin="天水火\n".encode() + b"\xff\n" + "金木".encode())
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in found] == [row["label"] for row in predictor(["天水火", "\ufffd", "金木"])]


def test_ctrl_c_ends_the_prompt(best: Path) -> None:
    process = start("--load", best, stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("天水火\n")
    process.stdin.flush()
    assert "label" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0
    assert err == ""


def test_a_reader_that_has_enough_is_no_crash(best: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "天水火"}\n' * 2000, encoding="utf-8")
    process = start("--load", best, "--input", tmp_path / "in.jsonl", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == "predict.py: the job ends: standard output was closed before all was written\n"
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--input", __file__, "--output", "."), "--output . is a folder"),
        (("--output", "x"), "--output needs --input"),
        (("--input", "none"), "--input none is not a file"),
        (("--input", __file__, "--batch-size", 0), "the batch size must be positive"),
        (("--input", __file__, "--output", "/dev/null/x"), "--output /dev/null/x cannot be written: Not a directory"),
    ],
)
def test_wrong_flags(best: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        call(monkeypatch, "--load", best, *flags)
    assert message in str(error.value)
