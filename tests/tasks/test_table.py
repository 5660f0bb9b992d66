"""The declared tasks against the published facts about them."""

from __future__ import annotations

import pytest

from megatron.errors import UserError
from megatron.tasks.sets.clue import CLUE
from megatron.tasks.table import TASKS, find_task
from tests.commands import ROOT

LABEL_COUNTS = {"afqmc": 2, "tnews": 15, "iflytek": 119, "cmnli": 3, "ocnli": 3, "cluewsc2020": 2, "csl": 2}
OTHERS = {"chnsenticorp": 2, "lcqmc": 2, "bq": 2, "xnli": 3, "mnli": 3, "qqp": 2}
CHOICES = ("c3", "chid", "race")
SUBMISSIONS = {
    "afqmc": {"test.json": "afqmc_predict.json"},
    "tnews": {"test.json": "tnews11_predict.json", "test1.0.json": "tnews10_predict.json"},
    "iflytek": {"test.json": "iflytek_predict.json"},
    "cmnli": {"test.json": "cmnli_predict.json"},
    "ocnli": {"test.json": "ocnli_50k_predict.json"},
    "cluewsc2020": {"test.json": "cluewsc11_predict.json", "test1.0.json": "cluewsc10_predict.json"},
    "csl": {"test.json": "csl_predict.json"},
}


def test_labels_and_submission_names_are_clues() -> None:
    assert {task.name: len(set(task.labels)) for task in CLUE} == LABEL_COUNTS
    assert {task.name: dict(task.test_files) for task in CLUE} == SUBMISSIONS
    assert not {"105", "111"} & set(find_task("tnews").labels)


def test_heads_are_as_wide_as_label_sets() -> None:
    for name, count in (LABEL_COUNTS | OTHERS).items():
        task = find_task(name)
        assert len(set(task.labels)) == task.kind.num_outputs(task) == count
    for name in CHOICES:
        task = find_task(name)
        assert (task.labels, task.kind.num_outputs(task)) == ((), 1)


def test_submission_names_of_choices_and_glue() -> None:
    names = {"test1.1.json": "chid11_predict.json", "test1.0.json": "chid10_predict.json"}
    assert dict(find_task("chid").test_files) == names
    names = {"test1.1.json": "c311_predict.json", "test1.0.json": "c310_predict.json"}
    assert dict(find_task("c3").test_files) == names
    names = {"test_matched.tsv": "MNLI-m.tsv", "test_mismatched.tsv": "MNLI-mm.tsv"}
    assert dict(find_task("mnli").test_files) == names
    assert dict(find_task("qqp").test_files) == {"test.tsv": "QQP.tsv"}


def test_names_are_found_in_upper_case_and_unknown_ones_get_a_suggestion() -> None:
    assert find_task("TNEWS") is find_task("tnews")
    with pytest.raises(UserError) as error:
        find_task("ocnil")
    assert "--task ocnil" in str(error.value)
    assert "did you mean ocnli?" in str(error.value)
    assert all(name in str(error.value) for name in [*LABEL_COUNTS, *OTHERS, *CHOICES, "classification"])


def test_the_page_of_tasks_has_them_all_as_they_are() -> None:
    lines = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")][1:]
    found = {name.strip("`"): (kind, numbers, files) for name, _, kind, _, numbers, files in rows}
    expected = {}
    for task in TASKS:
        hyper = task.defaults
        expected[task.name] = (
            task.kind.name + (" or prompts" if task.prompt else ""),
            f"{hyper.seq_length}, {hyper.epochs}, {hyper.global_batch_size}, {hyper.lr:g}",
            ", ".join(dict.fromkeys(name for _, name in task.test_files)),
        )
    assert found == expected
