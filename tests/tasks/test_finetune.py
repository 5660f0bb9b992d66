"""Fine-tuning runs: against a plain torch loop, reproducible, resumable by evaluation, wrong input refused."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.checkpoint import find_checkpoint, json_bytes, read_config, save_checkpoint, to_huggingface
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, whole_piece
from megatron.tasks.batching import training_batches
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.inputs import find_files, read_inputs
from megatron.tasks.kinds.classification import own_columns
from megatron.tasks.pretrained import load_weights, open_pretrained
from megatron.tasks.sets.clue import CLUE, OWN_TEXTS
from megatron.tasks.table import find_task
from tests.tasks.tiny import CHARACTERS, changed, metrics, write_checkpoint, write_sentiment

SINGLE = ParallelContext.single()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentiment(tmp_path_factory.mktemp("sentiment"), train=60, dev=20)


@pytest.fixture
def config(checkpoint: Path, data: Path, tmp_path: Path) -> FinetuneConfig:
    """A run of 12 steps with a record of each."""
    made = FinetuneConfig(
        task=TaskConfig(task="classification", data_dir=str(data), predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(tmp_path / "out")),
        tuning=TuningConfig(epochs=3, global_batch_size=16, lr=5e-3, seq_length=32),
    )
    return dataclasses.replace(made, logging=dataclasses.replace(made.logging, log_interval=1))



def records(config: FinetuneConfig, folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """Run into a folder; the records without what depends on the clock."""
    finetune(changed(config, "source", output_dir=str(folder)), SINGLE)
    timed = "samples_per_second tokens_per_second model_tflops_per_second mfu peak_memory_bytes step_seconds"
    timed += " loader_wait_seconds"
    return [{k: v for k, v in r.items() if k not in timed.split()} for r in metrics(folder) if r["split"] == split]


def losses(config: FinetuneConfig, folder: Path) -> list[float]:
    return [record["loss"] for record in records(config, folder)]


def test_losses_are_those_of_a_plain_torch_loop(config: FinetuneConfig, tmp_path: Path) -> None:
    config = changed(config, "tuning", hidden_dropout=0.0, attention_dropout=0.0, weight_decay=0.1, clip_grad=0.5)
    found = records(config, tmp_path / "ours")

    folder = Path(config.task.data_dir)
    task = own_columns(OWN_TEXTS, folder / "train.tsv", config.task)
    assert task.labels == ("bad", "good")
    pretrained = open_pretrained(Path(config.source.pretrained_checkpoint), tmp_path / "none", SINGLE)
    encoded = read_inputs(task, (folder / "train.tsv",), "train", pretrained.tokenizer, 32).encoded
    shape = dataclasses.replace(pretrained.model, hidden_dropout=0.0, attention_dropout=0.0)
    model = BertForTask(shape, SINGLE, num_outputs=2, dropout=0.0)
    initialize(model, config.tuning.seed)
    load_weights([model], pretrained, fine_tuned=False, context=SINGLE)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        eps=1e-8,
    )
    expected, total, consumed = [], 180, 0
    for epoch in range(3):
        for rows in training_batches(encoded.lengths, batch_size=16, seed=1234, epoch=epoch):
            batch = encoded.batch(rows)
            arrays = (batch.tokens, batch.token_types, batch.lengths, batch.labels)
            tokens, types, lengths, labels = map(torch.from_numpy, arrays)
            loss = torch.nn.functional.cross_entropy(model(tokens, types, lengths, None), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            warm, left = consumed / 18, (total - consumed) / (total - 18)
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (warm if consumed < 18 else left)
            optimizer.step()
            consumed += len(rows)
            expected.append(loss.item())
    assert [r["loss"] for r in found] == pytest.approx(expected, rel=1e-4)
    assert found[-1]["epoch"] == 3
    assert found[-1]["consumed_samples"] == 180


def test_a_profile_of_some_steps(config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written is tested with pre-training; here: which steps, and that they are those of fine-tuning."""
    config = changed(config, "logging", profile=str(tmp_path / "profile"), profile_step_start=2, profile_step_end=3)
    records(config, tmp_path / "out")
    assert "profile of rank 0, steps 2 to 3:" in capsys.readouterr().out
    with gzip.open(tmp_path / "profile" / "rank0.trace.json.gz", "rt", encoding="utf-8") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    assert [names.count(name) for name in ("step", "loader", "optimizer")] == [2, 2, 2]


def test_same_seed_same_bits_and_other_seed_other_run(config: FinetuneConfig, tmp_path: Path) -> None:
    first = records(config, tmp_path / "a")
    assert records(config, tmp_path / "b") == first
    one, two = (next((tmp_path / run / "best").glob("iter_*")) / "model-00000.safetensors" for run in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a" / "dev_metrics.json").read_bytes() == (tmp_path / "b" / "dev_metrics.json").read_bytes()
    other = losses(changed(config, "tuning", seed=7), tmp_path / "c")
    assert all(a != b["loss"] for a, b in zip(other, first, strict=True))


def test_micro_batches_change_nothing_but_rounding(config: FinetuneConfig, tmp_path: Path) -> None:
    whole = losses(config, tmp_path / "whole")
    cut = losses(changed(config, "tuning", micro_batch_size=5), tmp_path / "cut")
    assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("tuning", {"lr": 1e-3}),
        ("tuning", {"lr_warmup_fraction": 0.5}),
        ("tuning", {"lr_decay_style": "constant"}),
        ("tuning", {"weight_decay": 0.9}),
        ("tuning", {"clip_grad": 0.01}),
        ("tuning", {"hidden_dropout": 0.0}),
        ("tuning", {"attention_dropout": 0.0}),
        ("tuning", {"seq_length": 8}),
        ("tuning", {"global_batch_size": 20}),
        ("source", {"from_scratch": True}),
        ("precision", {"bf16": True}),
    ],
)
def test_each_option_changes_the_losses(
    config: FinetuneConfig, tmp_path: Path, section: str, values: dict[str, Any]
) -> None:
    plain = losses(config, tmp_path / "plain")
    found = losses(changed(config, section, **values), tmp_path / "changed")
    assert found[:12] != plain[: len(found)]
    assert np.isfinite(found).all()


def test_evaluations_and_the_best_checkpoint(config: FinetuneConfig, tmp_path: Path) -> None:
    config = changed(config, "tuning", eval_interval=5)
    dev = records(config, tmp_path / "out", "dev")
    assert [record["step"] for record in dev] == [5, 10, 12]
    best = max(dev, key=lambda record: record["accuracy"])
    written = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    assert written == {"task": "classification", **{k: v for k, v in best.items() if k != "split"}}
    (kept,) = (tmp_path / "out" / "best").glob("iter_*")
    assert kept.name == f"iter_{best['step']:07d}"
    saved = read_config(kept)
    assert saved["task"] == {
        "name": "classification",
        "head": "classification",
        "labels": ["bad", "good"],
        "text_columns": ["text"],
        "seq_length": 32,
    }

    again = changed(config, "source", pretrained_checkpoint=str(tmp_path / "out" / "best"), eval_only=True)
    again = changed(again, "tuning", seq_length=None)
    finetune(changed(again, "source", output_dir=str(tmp_path / "again")), SINGLE)
    evaluated = json.loads((tmp_path / "again" / "dev_metrics.json").read_text())
    assert {k: written[k] for k in evaluated} == evaluated
    name = "classification_predict.json"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not (tmp_path / "again" / "best").exists()


def test_hugging_face_folder_gives_the_same_run(config: FinetuneConfig, checkpoint: Path, tmp_path: Path) -> None:
    to_huggingface(checkpoint, tmp_path / "hub")
    ours = losses(config, tmp_path / "ours")
    theirs = losses(changed(config, "source", pretrained_checkpoint=str(tmp_path / "hub")), tmp_path / "theirs")
    assert theirs == ours
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == sorted(
        path.name for path in (tmp_path / "ours").iterdir()
    )


@pytest.mark.parametrize("architecture", ["bert", "megatron-bert"])
def test_transformers_scores_the_exported_model_alike(
    config: FinetuneConfig, tmp_path: Path, architecture: str
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [row | {"sentence2": text(n)[: 1 + n % 4]} for n, row in enumerate(official_rows("afqmc", 24, ("0", "1")))]
    for file in ("train.json", "dev.json"):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pretrained = write_checkpoint(tmp_path / "pretrained", architecture=architecture)
    config = changed(config, "task", task="afqmc", data_dir=str(folder), predict=False)
    config = changed(config, "source", pretrained_checkpoint=str(pretrained))
    finetune(config, SINGLE)
    output = Path(config.source.output_dir)
    to_huggingface(output / "best", tmp_path / "hub")

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hub").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    first, second = ([row[key] for row in rows] for key in ("sentence1", "sentence2"))
    with torch.no_grad():
        logits = model(**tokenizer(first, second, padding=True, return_tensors="pt")).logits
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    written = json.loads((output / "dev_metrics.json").read_text())
    assert written["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert written["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("architecture", ["bert", "megatron-bert"])
def test_checkpoint_without_pooler_and_both_architectures(
    config: FinetuneConfig, tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "encoder", binary_head=False, architecture=architecture)
    assert np.isfinite(losses(changed(config, "source", pretrained_checkpoint=str(folder)), tmp_path / "out")).all()
    assert "random: pooler.dense.weight, pooler.dense.bias, task_head.weight" in capsys.readouterr().out


def text(row: int) -> str:
    return CHARACTERS[row % 5] + CHARACTERS[5:9]


def official_rows(task: str, count: int, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row in range(count):
        fields: dict[str, dict[str, Any]] = {
            "tnews": {"sentence": text(row), "keywords": "", "label_desc": "x"},
            "iflytek": {"sentence": text(row), "label_des": "x"},
            "csl": {"abst": text(row), "keyword": ["金", "木水"]},
            "cluewsc2020": {
                "text": text(row),
                "target": {"span1_text": text(row)[:1], "span1_index": 0, "span2_text": "木", "span2_index": 2},
            },
        }
        pair = {"sentence1": text(row), "sentence2": text(row + 1)}
        rows.append({**fields.get(task, pair), "id": 7 * row + 3, "label": labels[row % len(labels)]})
    return rows


@pytest.mark.parametrize("name", [task.name for task in CLUE])
def test_every_task_trains_and_writes_its_submission_files(config: FinetuneConfig, tmp_path: Path, name: str) -> None:
    task = find_task(name)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = official_rows(name, 24, task.labels)
    for file in (task.train_files[0], "dev.json"):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file, _ in task.test_files:
        lines = [json.dumps({k: v for k, v in row.items() if k != "label"}) + "\n" for row in rows[::-1]]
        (folder / file).write_text("".join(lines), encoding="utf-8")
    config = changed(config, "task", task=name.upper(), data_dir=str(folder))
    config = changed(config, "tuning", epochs=1, seq_length=24)
    (dev,) = records(config, tmp_path / "out", "dev")
    assert dev["examples"] == 24
    for _, submission in task.test_files:
        written = [json.loads(line) for line in (tmp_path / "out" / submission).read_text().splitlines()]
        assert [row["id"] for row in written] == [row["id"] for row in rows[::-1]]
        assert {row["label"] for row in written} <= set(task.labels)
        assert all(set(row) == {"id", "label"} for row in written)


def test_ocnli_prefers_the_50k_file_and_other_files_can_be_named(config: FinetuneConfig, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    task = find_task("ocnli")
    for file, count in (("train.3k.json", 3), ("train.50k.json", 5), ("few.json", 7), ("dev.json", 2)):
        rows = official_rows("ocnli", count, task.labels)
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = changed(config, "task", task="ocnli", data_dir=str(folder), predict=False)
    config = changed(config, "tuning", epochs=1)
    assert records(config, tmp_path / "a")[-1]["consumed_samples"] == 5
    named = changed(config, "task", train_file=("few.json",), dev_file=(str(folder / "few.json"),))
    assert records(named, tmp_path / "b")[-1]["consumed_samples"] == 7


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("task", {"task": "tnew"}, "--task tnew: unknown task (did you mean tnews?)"),
        ("task", {"task": "tnews"}, "holds no train.json (or .gz); there is dev.tsv, test.tsv, train.tsv"),
        ("task", {"task": "tnews", "labels": ("a", "b")}, "--labels is for --task classification"),
        ("task", {"task": "tnews", "label_column": "y"}, "--label-column is for --task classification"),
        ("task", {"split": "1"}, "--split is for FewCLUE, whose files come in several; classification has no splits"),
        ("task", {"predict": False, "test_file": "test.tsv"}, "--test-file needs --predict"),
        ("source", {"pretrained_checkpoint": ""}, "--pretrained-checkpoint FOLDER is required"),
        ("task", {"data_dir": "/nowhere"}, "--data-dir /nowhere is not a folder"),
        ("task", {"dev_file": ("other.tsv",)}, "holds no other.tsv"),
        ("task", {"labels": ("good", "fine")}, "train.tsv, line 2: label 'bad' is none of the 2"),
        ("source", {"pretrained_checkpoint": "/nowhere"}, "/nowhere holds neither a checkpoint nor"),
        ("source", {"eval_only": True}, "is not fine-tuned; give the folder best/"),
        ("source", {"eval_only": True, "from_scratch": True}, "--eval-only needs trained weights"),
        ("source", {"output_dir": "/dev/null/out"}, "/dev/null/out cannot be written"),
        ("tuning", {"seq_length": 65}, "--seq-length 65 is above the model's 64 positions"),
        ("tuning", {"epochs": 0, "hidden_dropout": 1.5}, "2 problems:"),
        ("precision", {"fp16": True}, "--fp16 needs a CUDA device"),
        ("logging", {"log_interval": 0}, "--log-interval must be at least 1"),
    ],
)
def test_mistakes_are_named(config: FinetuneConfig, section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        finetune(changed(config, section, **values), SINGLE)
    assert message in str(error.value)


def test_files_of_other_names_are_also_found_from_the_working_directory(
    config: FinetuneConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "few.tsv").write_bytes((data / "train.tsv").read_bytes())
    monkeypatch.chdir(tmp_path)
    given = dataclasses.replace(config.task, train_file=("mine/few.tsv", "dev.tsv"), test_file="mine/few.tsv")
    files = find_files(given, trained=True)
    assert files.train == (Path("mine/few.tsv"), data / "dev.tsv")
    assert files.tests == (Path("mine/few.tsv"),)
    assert files.dev == (data / "dev.tsv",)


def test_of_test_files_with_the_same_result_file_the_first_is_predicted(config: FinetuneConfig, tmp_path: Path) -> None:
    """As of training files that are there under two names; the other's predictions would take the place of its."""
    for name in ("train.tsv", "dev.tsv", "test.jsonl", "test.csv"):
        (tmp_path / name).touch()
    here = dataclasses.replace(config.task, data_dir=str(tmp_path))
    assert find_files(here, trained=True).tests == (tmp_path / "test.csv",)
    for name in ("train.json", "dev.json", "test1.0.json", "test.json"):
        (tmp_path / name).touch()
    tests = find_files(dataclasses.replace(here, task="tnews"), trained=True).tests
    assert tests == (tmp_path / "test.json", tmp_path / "test1.0.json")


def test_checkpoint_of_another_task_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    finetune(changed(config, "tuning", epochs=1), SINGLE)
    best = str(Path(config.source.output_dir) / "best")
    again = changed(config, "source", pretrained_checkpoint=best, eval_only=True, output_dir=str(tmp_path / "again"))
    with pytest.raises(UserError, match="--labels yes no: the checkpoint's are bad good"):
        finetune(changed(again, "task", labels=("yes", "no")), SINGLE)
    folder = tmp_path / "afqmc"
    folder.mkdir()
    (folder / "dev.json").write_text(json.dumps(official_rows("afqmc", 1, ("0", "1"))[0]), encoding="utf-8")
    with pytest.raises(UserError, match="--task afqmc: the checkpoint was fine-tuned on classification"):
        finetune(changed(again, "task", task="afqmc", data_dir=str(folder), predict=False), SINGLE)


@pytest.mark.parametrize(
    ("described", "message"),
    [("good", "the task must be an object"), ({"name": "classification"}, "the task lacks its name or its seq_length")],
)
def test_a_damaged_description_of_the_task_is_named(
    config: FinetuneConfig, checkpoint: Path, tmp_path: Path, described: Any, message: str
) -> None:
    (folder,) = checkpoint.glob("iter_*")
    files = {name: (folder / name).read_bytes() for name in ("vocab.txt", "train_state.json")}
    files["config.json"] = json_bytes({**read_config(folder), "task": described})
    save_checkpoint(tmp_path / "damaged", 1, model=[], optimizer=[], files=files, context=SINGLE)
    damaged = changed(config, "source", pretrained_checkpoint=str(tmp_path / "damaged"), eval_only=True)
    with pytest.raises(UserError, match=f"config.json: {message}"):
        finetune(damaged, SINGLE)


def test_fine_tuned_weights_can_be_tuned_on(config: FinetuneConfig, tmp_path: Path) -> None:
    plain = losses(changed(config, "tuning", epochs=1), tmp_path / "first")
    best = find_checkpoint(tmp_path / "first" / "best", context=SINGLE)
    second = changed(config, "source", pretrained_checkpoint=str(best))
    assert losses(second, tmp_path / "second")[0] != plain[0]


def test_a_run_that_diverges_stops(config: FinetuneConfig, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_checkpoint(tmp_path / "broken") / "iter_0000000"
    weights = load_file(folder / "model-00000.safetensors")
    weights["pooler.dense.bias"] = torch.full_like(weights["pooler.dense.bias"], float("nan"))
    names = [path.name for path in folder.iterdir() if path.name not in ("manifest.json", "model-00000.safetensors")]
    files = {name: (folder / name).read_bytes() for name in names}
    pieces = [whole_piece(name, tensor) for name, tensor in weights.items()]
    save_checkpoint(folder.parent, 0, model=pieces, optimizer=[], files=files, context=SINGLE)
    config = changed(config, "source", pretrained_checkpoint=str(folder))
    with pytest.raises(UserError, match="not finite in 50 steps in a row"):
        finetune(changed(config, "tuning", epochs=20, eval_interval=1000), SINGLE)
