"""Classification outside CLUE: rows in the true forms of the files, GLUE's result files, scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.inputs import find_files, read_examples
from megatron.tasks.kinds.classification import Classified, TextExample
from megatron.tasks.table import find_task
from tests.tasks.tiny import CHARACTERS, write_checkpoint

MNLI_TRAIN = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label"
)
MNLI_DEV = MNLI_TRAIN.replace("label1", "label1 label2 label3 label4 label5")
MNLI_TEST = MNLI_TRAIN.replace(" label1 gold_label", "")
XNLI_ALL = (
    "language gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
    "sentence2 promptID pairID genre label1 label2 label3 label4 label5 sentence1_tokenized sentence2_tokenized match"
)
QQP = "id qid1 qid2 question1 question2 is_duplicate"


def write_tsv(path: Path, *rows: str | tuple[str, ...]) -> Path:
    """Rows of cells; a string is a header of names between spaces."""
    lines = ["\t".join(row.split() if isinstance(row, str) else row) + "\n" for row in rows]
    path.write_bytes("".join(lines).encode())
    return path


def mnli_row(premise: str, hypothesis: str, *labels: str) -> tuple[str, ...]:
    return ("7", "31", "31n", "fiction", "( a )", "( b )", "(ROOT a)", "(ROOT b)", premise, hypothesis, *labels)


def xnli_row(language: str, label: str, premise: str, hypothesis: str) -> tuple[str, ...]:
    return (language, label, "", "", "", "", premise, hypothesis, "1", "1", "face", *[label] * 5, "x", "y", "True")


def found(task: str, path: Path, split: str) -> list[tuple[tuple[str, ...], str | None]]:
    labels = find_task(task).labels
    examples = read_examples(find_task(task), path, split)  # type: ignore[arg-type]
    return [(e.texts, None if e.label is None else labels[e.label]) for e in examples]


def test_chnsenticorp(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "train.tsv", "label text_a", ("1", '房间"很好，'), ("0", "早餐一般"))
    assert found("chnsenticorp", path, "train") == [(('房间"很好，',), "1"), (("早餐一般",), "0")]
    assert found("chnsenticorp", path, "test") == [(('房间"很好，',), None), (("早餐一般",), None)]


@pytest.mark.parametrize("task", ["lcqmc", "bq"])
@pytest.mark.parametrize("name", ["train.tsv", "train.txt"])
def test_pairs_without_and_with_a_header(tmp_path: Path, task: str, name: str) -> None:
    rows = [("怎么还款", "如何还款？", "1"), ('"借"', "提额", "0")]
    expected = [(("怎么还款", "如何还款？"), "1"), (('"借"', "提额"), "0")]
    assert found(task, write_tsv(tmp_path / name, *rows), "train") == expected
    for header in ("text_a text_b", "text1 text2", "sentence1 sentence2"):
        assert found(task, write_tsv(tmp_path / name, f"{header} label", *rows), "dev") == expected
        unlabelled = write_tsv(tmp_path / name, header, *[row[:2] for row in rows])
        assert found(task, unlabelled, "test") == [(texts, None) for texts, _ in expected]
    assert found(task, write_tsv(tmp_path / name, *[row[:2] for row in rows]), "test")[1] == (('"借"', "提额"), None)


def test_xnli_of_the_archive(tmp_path: Path) -> None:
    path = write_tsv(
        tmp_path / "multinli.train.zh.tsv",
        "premise hypo label",
        ("我 在 河边 钓鱼 。", "我 在 家 。", "contradictory"),
        ("他 笑 了 。", "他 高兴", "neutral"),
    )
    assert found("xnli", path, "train") == [
        (("我在河边钓鱼。", "我在家。"), "contradiction"),
        (("他笑了。", "他高兴"), "neutral"),
    ]
    path = write_tsv(
        tmp_path / "xnli.dev.tsv",
        XNLI_ALL,
        xnli_row("ar", "neutral", "a", "b"),
        xnli_row("zh", "entailment", "她用 iPhone 打电话。", "她有电话。"),
        xnli_row("vi", "neutral", "c", "d"),
        xnli_row("zh", "contradiction", "天黑了。", "天亮了。"),
    )
    expected = [(("她用 iPhone 打电话。", "她有电话。"), "entailment"), (("天黑了。", "天亮了。"), "contradiction")]
    assert found("xnli", path, "dev") == expected
    assert [e.id for e in read_examples(find_task("xnli"), path, "test")] == [0, 1]
    path = write_tsv(tmp_path / "dev.tsv", "text_a text_b label", ("天黑了。", "天亮了。", "contradiction"))
    assert found("xnli", path, "dev") == expected[1:]


def test_mnli_columns_and_its_two_dev_files(tmp_path: Path) -> None:
    task = find_task("mnli")
    write_tsv(tmp_path / "train.tsv", MNLI_TRAIN, mnli_row('He said "go.', "He spoke.", "neutral", "entailment"))
    five = ["neutral"] * 5
    write_tsv(tmp_path / "dev_matched.tsv", MNLI_DEV, mnli_row("A.", "B.", *five, "neutral"))
    other = [mnli_row("C.", "D.", *five, "contradiction"), mnli_row("E.", "F.", *five, "-")]
    write_tsv(tmp_path / "dev_mismatched.tsv", MNLI_DEV, *other)
    write_tsv(tmp_path / "test_matched.tsv", MNLI_TEST, mnli_row("G.", "H."))
    files = find_files(TaskConfig(task="mnli", data_dir=str(tmp_path)), trained=True)
    assert found("mnli", files.train[0], "train") == [(('He said "go.', "He spoke."), "entailment")]
    examples = [e for path in files.dev for e in read_examples(task, path, "dev")]
    assert [(e.texts, e.group) for e in examples] == [(("A.", "B."), "matched"), (("C.", "D."), "mismatched")]
    assert task.scores(task, examples, [Classified("neutral", ()), Classified("neutral", ())]) == {
        "accuracy": 0.5,
        "majority_accuracy": 0.5,
        "accuracy_matched": 1.0,
        "accuracy_mismatched": 0.0,
    }
    assert found("mnli", tmp_path / "test_matched.tsv", "test") == [(("G.", "H."), None)]


def test_qqp_leaves_out_broken_rows_of_its_train_file_alone(tmp_path: Path) -> None:
    rows = [
        ("170311", "263353", "263354", "Why do owls hoot?", 'Why do the "owls hoot?', "1"),
        ("2", "5", "6", "What is"),
        ("3", "7", "8", "What is a fjord?", "", "0"),
        ("4", "9", "10", "Is tea hot?", "Is ice cold?", "0"),
    ]
    path = write_tsv(tmp_path / "train.tsv", QQP, *rows)
    assert [label for _, label in found("qqp", path, "train")] == ["1", "0"]
    with pytest.raises(UserError, match=r"train\.tsv, line 3: 4 columns, but the header names 6"):
        found("qqp", path, "dev")
    path = write_tsv(tmp_path / "test.tsv", "id question1 question2", ("0", "Is tea hot?", "Is ice cold?"))
    assert found("qqp", path, "test") == [(("Is tea hot?", "Is ice cold?"), None)]


def test_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    task = find_task("qqp")
    for share in (0.0, 0.1, 0.5, 1.0):
        labels, guesses = (rng.random(60) < share).astype(int), rng.integers(0, 2, 60)
        examples = [TextExample(("a", "b"), int(label), 0) for label in labels]
        scores = task.scores(task, examples, [Classified(str(guess), ()) for guess in guesses])
        assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, guesses, zero_division=0))
        assert scores["accuracy"] == sklearn.metrics.accuracy_score(labels, guesses)
    assert list(scores)[0] == "accuracy"


def test_result_files_of_glue() -> None:
    examples = [TextExample(("a", "b"), None, id_) for id_ in ("17", "3")]
    labels = [Classified("neutral", ()), Classified("entailment", ())]
    assert find_task("mnli").submission(examples, labels) == "index\tprediction\n0\tneutral\n1\tentailment\n"


@pytest.mark.parametrize(
    ("task", "lines", "message"),
    [
        ("lcqmc", ["a\tb\t1", "a\tb"], "line 2: 2 columns, but there should be 3"),
        ("lcqmc", ["a\tb\t1", "a\tb\t2"], "line 2: label '2' is none of the 2 of lcqmc"),
        ("bq", ["a\tb"], "line 1: no key 'label'"),
        ("chnsenticorp", ["label\ttext_a", "1\ta\tb"], "line 2: 3 columns, but the header names 2"),
        ("chnsenticorp", ["1\ta", "1\ta"], "line 2: no key 'label'"),
        ("xnli", ["premise\thypo\tlabel", "a\tb\tmaybe"], "line 2: label 'maybe' is none of the 3"),
        ("xnli", ["text\tlabel", "a\tneutral"], "line 2: no key 'text_a'"),
        ("mnli", ["sentence1\tsentence2\tgold_label", "a\tb\tno"], "line 2: label 'no' is none of the 3"),
        ("qqp", ["question1\tis_duplicate", "a\t0"], "line 2: no key 'question2'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, task: str, lines: list[str], message: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError) as error:
        read_examples(find_task(task), path, "train")
    assert f"{path}, {message}" in str(error.value)


def test_a_run_of_mnli_scores_and_predicts_both_parts(tmp_path: Path) -> None:
    for name, header, count in (
        ("train", MNLI_TRAIN, 20),
        ("dev_matched", MNLI_DEV, 6),
        ("dev_mismatched", MNLI_DEV, 4),
        ("test_matched", MNLI_TEST, 3),
        ("test_mismatched", MNLI_TEST, 5),
    ):
        columns, label = len(header.split()), ("neutral", "entailment", "contradiction")
        cells = [mnli_row(CHARACTERS[n % 7], CHARACTERS[n % 5], *[label[n % 3]] * (columns - 10)) for n in range(count)]
        write_tsv(tmp_path / f"{name}.tsv", header, *cells)
    config = FinetuneConfig(
        task=TaskConfig(task="mnli", data_dir=str(tmp_path), predict=True),
        source=ModelSourceConfig(
            pretrained_checkpoint=str(write_checkpoint(tmp_path / "checkpoint")), output_dir=str(tmp_path / "out")
        ),
        tuning=TuningConfig(epochs=1, seq_length=16),
    )
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_interval=1))
    finetune(config, ParallelContext.single())
    scores = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    both = 6 * scores["accuracy_matched"] + 4 * scores["accuracy_mismatched"]
    assert scores["accuracy"] == pytest.approx(both / 10) and scores["examples"] == 10
    for name, count in (("MNLI-m.tsv", 3), ("MNLI-mm.tsv", 5)):
        header, *lines = (tmp_path / "out" / name).read_text().splitlines()
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(number) for number in range(count)]
        assert {line.split("\t")[1] for line in lines} <= set(find_task("mnli").labels)


@pytest.mark.parametrize(
    ("name", "folder", "train", "dev"),
    [("chnsenticorp", "ChnSentiCorp", 7905, [607, 593]), ("xnli", "XNLI", 5009, [830, 830, 830])],
)
def test_real_files_are_read_whole(shared_data: Path, name: str, folder: str, train: int, dev: list[int]) -> None:
    task = find_task(name)
    files = find_files(TaskConfig(task=name, data_dir=str(shared_data / "tasks" / folder)), trained=True)
    assert len(read_examples(task, files.train[0], "train")) == train
    labels = [e.label for e in read_examples(task, files.dev[0], "dev")]
    assert [labels.count(label) for label in range(len(task.labels))] == dev
