"""Reading comprehension from files to submissions, and on the real files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.checkpoint import find_checkpoint, read_config
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, ReadingConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.inputs import read_examples
from megatron.tasks.kinds.spans import SPANS
from megatron.tasks.table import find_task
from tests.tasks.test_encode import Characters
from tests.tasks.tiny import changed, metrics, run_command, write_checkpoint, write_reading

SINGLE = ParallelContext.single()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of cmrc2018."""
    folder = tmp_path_factory.mktemp("reading")
    for name, count in (("train", 40), ("dev", 8), ("test", 4)):
        write_reading(folder / f"{name}.json", name.upper(), contexts=count)
    return folder


@pytest.fixture
def config(checkpoint: Path, data: Path, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        task=TaskConfig(task="cmrc2018", data_dir=str(data), predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(tmp_path / "out")),
        tuning=TuningConfig(epochs=1, global_batch_size=24, lr=5e-3, seq_length=32),
        reading=ReadingConfig(doc_stride=16),
    )



def test_the_whole_command_learns_to_read(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    ran = run_command(
        *("--task", "CMRC2018", "--data-dir", data, "--pretrained-checkpoint", checkpoint, "--predict"),
        *("--output-dir", tmp_path, "--seq-length", 32, "--epochs", 8, "--lr", 5e-3, "--global-batch-size", 32),
        *("--doc-stride", 16, "--max-query-length", 2, "--max-answer-length", 5, "--n-best-size", 4),
        *("--hidden-dropout", 0, "--attention-dropout", 0),
    )
    assert ran.returncode == 0, ran.stderr
    assert "reading: doc_stride=16, max_query_length=2, max_answer_length=5, n_best_size=4, version_2" in ran.stdout
    assert "dev.json: 16 examples in " in ran.stdout and " 8 cut to fit" in ran.stdout
    found = json.loads((tmp_path / "dev_metrics.json").read_text())
    assert list(found)[:4] == ["task", "average", "exact_match", "f1"]
    assert found["f1"] > 0.9 and found["average"] == (found["exact_match"] + found["f1"]) / 2

    written = (tmp_path / "cmrc2018_predict.json").read_text(encoding="utf-8")
    answers = json.loads(written)
    assert written.count("\n") == 1
    assert list(answers) == [f"TEST_{number}_QUERY_{k}" for number in range(4) for k in range(2)]
    contexts = [part["paragraphs"][0]["context"] for part in json.loads((data / "test.json").read_text())["data"]]
    for number, text in enumerate(answers.values()):
        assert text in contexts[number // 2] and 1 <= len(text) <= 5
    assert sum("书画" in text for text in answers.values()) >= 6


def test_squad2_is_evaluated_again_as_it_was_tuned(config: FinetuneConfig, tmp_path: Path) -> None:
    folder = tmp_path / "squad"
    for name, count in (("train-v2.0", 30), ("dev-v2.0", 9)):
        write_reading(folder / f"{name}.json", name.upper(), contexts=count, unanswerable=True)
    config = changed(config, "task", task="squad", version_2_with_negative=True, data_dir=str(folder))
    config = changed(config, "reading", max_answer_length=6, null_score_diff_threshold=0.25)
    finetune(config, SINGLE)
    output = tmp_path / "out"
    found = json.loads((output / "dev_metrics.json").read_text())
    assert found["task"] == "squad2" and found["examples"] == 18
    names = ["f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_f1", "no_answer_exact_match"]
    assert [name for name in found if name in names][:2] == ["f1", "exact_match"] and set(names) <= set(found)
    assert found["best_f1"] >= found["f1"]
    best = find_checkpoint(output / "best", context=SINGLE)
    assert best is not None
    assert read_config(best)["task"]["reading"] == {
        "doc_stride": 16,
        "max_query_length": 64,
        "max_answer_length": 6,
        "n_best_size": 20,
        "version_2_with_negative": True,
        "null_score_diff_threshold": 0.25,
    }

    again = changed(config, "source", pretrained_checkpoint=str(output / "best"), eval_only=True)
    again = dataclasses.replace(changed(again, "tuning", seq_length=None), reading=ReadingConfig())
    again = changed(again, "task", task="squad2", version_2_with_negative=False)
    finetune(changed(again, "source", output_dir=str(tmp_path / "again")), SINGLE)
    evaluated = json.loads((tmp_path / "again" / "dev_metrics.json").read_text())
    assert {k: found[k] for k in evaluated} == evaluated
    answers = (output / "squad2_dev_predict.json").read_bytes()
    assert (tmp_path / "again" / "squad2_dev_predict.json").read_bytes() == answers
    for threshold, empty in ((-1e9, 18), (1e9, 0)):
        flag = changed(again, "reading", null_score_diff_threshold=threshold)
        finetune(changed(flag, "source", output_dir=str(tmp_path / "flag")), SINGLE)
        texts = json.loads((tmp_path / "flag" / "squad2_dev_predict.json").read_text()).values()
        assert sum(not text for text in texts) == empty
        evaluated = json.loads((tmp_path / "flag" / "dev_metrics.json").read_text())
        assert evaluated["no_answer_f1"] == (1.0 if empty else 0.0) and evaluated["best_f1"] == found["best_f1"]


@pytest.mark.parametrize("name", ["drcd", "squad"])
def test_official_names_of_files(config: FinetuneConfig, tmp_path: Path, name: str) -> None:
    task = find_task(name)
    folder = tmp_path / "data"
    for file, count in ((task.train_files[0], 8), (task.dev_files[0], 3), (task.test_files[0][0], 2)):
        write_reading(folder / file, file.split(".")[0].upper(), contexts=count)
    finetune(changed(config, "task", task=name, data_dir=str(folder)), SINGLE)
    assert len(json.loads((tmp_path / "out" / task.test_files[0][1]).read_text())) == 4
    (dev,) = (record for record in metrics(tmp_path / "out") if record["split"] == "dev")
    assert dev["examples"] == 6 and {"f1", "exact_match"} <= set(dev)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("reading", {"doc_stride": 0, "n_best_size": -1}, "--n-best-size must be positive, not -1"),
        ("reading", {"null_score_diff_threshold": 1.0}, "--null-score-diff-threshold is for squad2"),
        ("task", {"version_2_with_negative": True}, "--version-2-with-negative is for --task squad, not cmrc2018"),
        ("task", {"task": "squad", "dev_file": ("x.json",)}, "holds no x.json"),
        ("task", {"task": "afqmc"}, "--doc-stride is for reading comprehension, not afqmc"),
    ],
)
def test_mistakes_are_named(config: FinetuneConfig, section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        finetune(changed(config, section, **values), SINGLE)
    assert message in str(error.value)


def test_published_hyper_parameters() -> None:
    found = {
        name: (
            task.defaults.seq_length,
            task.defaults.epochs,
            task.defaults.global_batch_size,
            task.defaults.lr,
            task.reading and task.reading.max_answer_length,
        )
        for name, task in ((name, find_task(name)) for name in ("cmrc2018", "drcd", "squad", "squad2"))
    }
    assert found == {
        "cmrc2018": (512, 2, 24, 3e-5, 50),
        "drcd": (512, 2, 32, 3e-5, 50),
        "squad": (384, 2, 12, 3e-5, 30),
        "squad2": (384, 2, 12, 3e-5, 30),
    }


@pytest.mark.parametrize(
    ("name", "file", "contexts", "golds", "lacking", "moved"),
    [
        # questions, golden answers, those that the context lacks, and questions whose answer stands elsewhere
        ("cmrc2018", "CMRC2018/dev.json.gz", 790, 3, 184, 3),
        ("cmrc2018", "CMRC2018/train.json.gz", 1297, 1, 0, 15),
        ("drcd", "DRCD/dev.json.gz", 856, 2, 0, 0),
        ("drcd", "DRCD/train.json.gz", 1000, 2, 0, 0),
        ("squad", "SQuAD1.1/dev.json.gz", 240, 1, 0, 0),
        ("cmrc2018", "XQuAD-zh/dev.json.gz", 240, 1, 0, 0),
    ],
)
def test_real_files(
    shared_data: Path, name: str, file: str, contexts: int, golds: int, lacking: int, moved: int
) -> None:
    path = shared_data / "tasks" / file
    if not path.is_file():
        pytest.skip(f"no {file}")
    task = find_task(name)
    examples = read_examples(task, path, "train" if "train" in file else "dev")
    counts = {"CMRC2018/dev.json.gz": 2999, "CMRC2018/train.json.gz": 5500, "DRCD/dev.json.gz": 3000}
    assert len(examples) == counts.get(file, 3493 if golds == 2 else 1190)
    assert len({example.context for example in examples}) == contexts
    assert {len(example.answers) for example in examples} == {golds}
    assert sum(answer not in example.context for example in examples for answer in example.answers) == lacking
    assert sum(example.moved for example in examples) == moved
    assert all(example.context[slice(*example.span)] in example.answers for example in examples)

    # scores that point at the labels are perfect where an answer fits into a window
    few = [example for example in examples if len(example.context) < 600][:150]
    encoded = SPANS.encode(task, few, Characters(), 384)  # type: ignore[arg-type]
    outputs = np.zeros((len(encoded.tokens), 2), dtype=np.float32)
    held = encoded.labels[:, 0] > 0
    for column in (0, 1):
        outputs[encoded.offsets[:-1][held] + encoded.labels[held, column], column] = 9
    found = SPANS.decode(task, few, encoded, outputs)
    assert task.reading is not None and encoded.examples is not None
    assert set(encoded.examples[held]) == set(range(len(few)))
    short = [
        (example, answer)
        for example, answer in zip(few, found, strict=True)
        if example.span[1] - example.span[0] <= task.reading.max_answer_length
    ]
    assert len(short) > 100
    scores = task.scores(task, [example for example, _ in short], [answer for _, answer in short])
    assert scores["exact_match"] == scores["f1"] == 1
