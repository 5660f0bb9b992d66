"""The command in several layouts, as a user types it: the numbers and the checkpoints of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.weights import weights_of
from tests.commands import ROOT, finish, run
from tests.ranks import run_script
from tests.training.corpus import arguments, command, records, write_corpus
from tests.training.run import train

SHAPE = {
    "num_layers": 4, "hidden_dropout": 0, "attention_dropout": 0, "eval_interval": 3, "eval_iters": 3,
    "micro_batch_size": 2,
}  # fmt: skip
LOSSES = ("mlm_loss", "sop_loss", "mlm_accuracy", "sop_accuracy")


@pytest.fixture(scope="module")
def corpus_and_one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    write_corpus(folder)
    train(folder, **SHAPE, metrics_file=folder / "one.jsonl")
    return folder


@pytest.fixture
def corpus(corpus_and_one_process: Path, tmp_path: Path) -> Path:
    shutil.copytree(corpus_and_one_process, tmp_path, dirs_exist_ok=True)
    return tmp_path


def flops_of(record: dict[str, Any]) -> float:
    """Model FLOPs of the steps of a record, a step."""
    return record["model_tflops_per_second"] * record["step_seconds"]


def assert_same_run(folder: Path) -> None:
    for split, names in (("train", (*LOSSES, "grad_norm")), ("valid", LOSSES)):
        one, several = records(folder, split, "one.jsonl"), records(folder, split)
        assert [row["step"] for row in one] == [row["step"] for row in several] != []
        for a, b in zip(one, several, strict=True):
            for name in names:
                assert b[name] == pytest.approx(a[name], rel=1e-5), (split, name, a["step"])
            if split == "train":
                assert flops_of(b) == pytest.approx(flops_of(a)) != 0


def test_eight_processes_of_torchrun_in_three_dimensions(corpus: Path) -> None:
    flags = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True}
    argv = arguments(corpus, **SHAPE, **flags, use_distributed_optimizer=True, save=corpus / "save")
    code, out, err = finish(command(argv, processes=8))
    assert code == 0, err
    assert "tensor 2 x pipeline 2 x data 2" in out
    assert_same_run(corpus)


@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (2, {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zero-bubble", "pipeline_split": "1,3"}),
        (2, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1}),
        (4, {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True, "ddp_bucket_size": 3000}),
        (1, {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}),
    ],
)
def test_layouts_give_the_numbers_of_one_process(corpus: Path, processes: int, flags: dict[str, Any]) -> None:
    for code, err in run_script(ROOT / "pretrain_bert.py", arguments(corpus, **SHAPE, **flags), processes, corpus):
        assert code == 0, err
    assert_same_run(corpus)


@pytest.mark.parametrize(
    "flags",
    [
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 2, "use_distributed_optimizer": True},
    ],
)
def test_a_checkpoint_of_a_layout_continues_in_one_process_and_back(corpus: Path, flags: dict[str, Any]) -> None:
    """Steps 1 and 2 in the layout, 3 and 4 alone, 5 and 6 in the layout again: the run of one process."""
    for last, processes in ((2, 4), (4, 1), (6, 4)):
        own = {**SHAPE, **(flags if processes > 1 else {}), "micro_batch_size": 2, "save": corpus / "save"}
        argv = arguments(corpus, **own, **({"exit_interval": last} if last < 6 else {}))
        for code, err in run_script(ROOT / "pretrain_bert.py", argv, processes, corpus):
            assert code == 0, err
    weights = weights_of(corpus / "save" / "iter_0000006")
    assert weights["embeddings.word_embeddings.weight"].shape == (65, 32)
    assert sum(name.startswith("encoder.layers.") for name in weights) == 4 * 12
    for a, b in zip(records(corpus, name="one.jsonl"), records(corpus), strict=True):
        for name in (*LOSSES, "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), (name, a["step"])


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_the_trace_of_a_run_is_drawn_beside_its_plan(corpus: Path, schedule: str) -> None:
    """What the stages executed is the plan, in its order, and holds no more activations than it says."""
    flags = {"pipeline_model_parallel_size": 2, "pipeline_schedule": schedule, "pipeline_trace": corpus / "trace"}
    for code, err in run_script(ROOT / "pretrain_bert.py", arguments(corpus, **SHAPE, **flags), 2, corpus):
        assert code == 0, err
    argv = ["--pipeline-model-parallel-size", "2", "--pipeline-schedule", schedule, "--micro-batches", "4"]
    result = run("tools/show_schedule.py", *argv, "--trace", corpus / "trace")
    assert result.returncode == 0, result.stderr
    assert "NOT in the order of the plan" not in result.stdout
    planned, executed = result.stdout.split("executed", 1)
    peaks = [
        [line for line in text.splitlines() if line.startswith("most activations")] for text in (planned, executed)
    ]
    assert peaks[0] == peaks[1] != []
