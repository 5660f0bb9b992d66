"""Entity scores: hand-worked cases, and seqeval on random tags."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from megatron.tasks.kinds.tagging import TaggedText
from megatron.tasks.kinds.tags import Entity, entities_of, spell, tag_set
from megatron.tasks.sets.tagging_metrics import entity_scores
from megatron.tasks.table import find_task

A, B = "A", "B"
TAGS = tag_set(("LOC", "X-Y"), "BIOES")


def test_one_end_of_three_is_off_by_one() -> None:
    gold = [[Entity(0, 1, A), Entity(4, 6, A)], [Entity(2, 2, B)]]
    found = [[Entity(0, 1, A), Entity(4, 5, A)], [Entity(2, 2, B)]]
    scores = entity_scores(gold, found)
    assert scores == pytest.approx(
        {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "macro_f1": 0.75, "f1_A": 0.5, "f1_B": 1.0}
    )


def test_right_span_of_the_wrong_type_is_wrong_twice() -> None:
    assert entity_scores([[Entity(0, 1, A)]], [[Entity(0, 1, B)]]) == dict.fromkeys(
        ("f1", "precision", "recall", "macro_f1", "f1_A", "f1_B"), 0.0
    )


def test_micro_and_macro() -> None:
    of_a = [Entity(place, place, A) for place in range(4)]
    scores = entity_scores([[*of_a, Entity(9, 9, B)]], [[*of_a[:3], Entity(7, 7, A)]])
    assert (scores["f1"], scores["macro_f1"]) == pytest.approx((6 / 9, 0.375))
    assert scores["precision"] == 3 / 4 and scores["recall"] == 3 / 5


def test_the_same_place_in_another_text_is_another_entity_and_repeats_count_once() -> None:
    scores = entity_scores([[Entity(0, 1, A)], []], [[], [Entity(0, 1, A), Entity(0, 1, A)]])
    assert (scores["f1"], scores["precision"], scores["recall"]) == (0, 0, 0)
    assert entity_scores([[Entity(0, 1, A)]], [[Entity(0, 1, A), Entity(0, 1, A)]])["precision"] == 1
    assert entity_scores([[]], [[]])["f1"] == 0


def test_the_best_checkpoint_is_that_of_the_board_figure() -> None:
    examples = [TaggedText("王明在北京", (Entity(0, 1, "name"), Entity(3, 4, "address")), 0)]
    found = [(Entity(0, 1, "name"), Entity(3, 3, "address"))]
    for name, first in (("cluener2020", "macro_f1"), ("weibo_ner", "f1")):
        task = find_task(name)
        scores = task.scores(task, examples, found)
        assert next(iter(scores)) == first
        assert {key: scores[key] for key in ("f1_name", "f1_address", "macro_f1")} == {
            "f1_name": 1.0,
            "f1_address": 0.0,
            "macro_f1": 0.5,
        }


tag_lists = st.lists(st.sampled_from(TAGS), min_size=1, max_size=12)


@given(tag_lists)
def test_entities_of_any_tags_are_those_of_seqeval(tags: list[str]) -> None:
    # seqeval cuts a type at its last hyphen
    expected = [(kind, first, last) for kind, first, last in get_entities([tag.replace("X-Y", "XY") for tag in tags])]
    assert [(e.type.replace("-", ""), e.first, e.last) for e in entities_of(tags)] == expected


@given(st.lists(st.tuples(tag_lists, tag_lists), min_size=1, max_size=5))
def test_scores_are_those_of_seqeval(texts: list[tuple[list[str], list[str]]]) -> None:
    pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in texts]
    gold, found = ([list(side) for side in sides] for sides in zip(*pairs, strict=True))
    scores = entity_scores(list(map(entities_of, gold)), list(map(entities_of, found)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing to divide by
        expected = {
            "f1": f1_score(gold, found),
            "precision": precision_score(gold, found),
            "recall": recall_score(gold, found),
        }
        if any(tag != "O" for tags in (*gold, *found) for tag in tags):
            expected["macro_f1"] = f1_score(gold, found, average="macro")
    assert {key: scores[key] for key in expected} == pytest.approx(expected)


@given(st.sampled_from(["BIO", "BMES", "BIOES"]), st.data())
def test_spelled_entities_are_read_again(scheme: str, data: st.DataObject) -> None:
    entities, place = [], 0
    for gap, size in data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=5)):
        place += gap
        entities.append(Entity(place, place + size - 1, data.draw(st.sampled_from("AB"))))
        place += size
    tags = tag_set("AB", scheme)  # type: ignore[arg-type]
    spelled = spell(entities, place + 1, tags)
    assert set(spelled) <= set(tags)
    assert entities_of(spelled) == entities


def test_of_overlapping_entities_the_first_and_longest_is_spelled() -> None:
    entities = [Entity(2, 3, A), Entity(1, 2, B), Entity(1, 4, A), Entity(5, 5, B)]
    assert spell(entities, 7, tag_set("AB", "BMES")) == ["O", "B-A", "M-A", "M-A", "E-A", "S-B", "O"]
    assert spell(entities, 7, tag_set("AB", "BIO")) == ["O", "B-A", "I-A", "I-A", "I-A", "B-B", "O"]
