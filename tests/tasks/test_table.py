"""The declared tasks against the published facts about them."""

from __future__ import annotations

import pytest

from megatron.errors import UserError
from megatron.tasks.clue import CLUE
from megatron.tasks.table import find_task

LABEL_COUNTS = {"afqmc": 2, "tnews": 15, "iflytek": 119, "cmnli": 3, "ocnli": 3, "cluewsc2020": 2, "csl": 2}
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


def test_names_are_found_in_upper_case_and_unknown_ones_get_a_suggestion() -> None:
    assert find_task("TNEWS") is find_task("tnews")
    with pytest.raises(UserError) as error:
        find_task("ocnil")
    assert "--task ocnil" in str(error.value)
    assert "did you mean ocnli?" in str(error.value)
    assert all(name in str(error.value) for name in [*LABEL_COUNTS, "classification"])
