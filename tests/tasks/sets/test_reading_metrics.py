"""Scores of reading comprehension on cases worked by hand with the official scripts, and their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.tasks.sets.reading_metrics import (
    Squad2Inputs,
    best_threshold,
    cmrc_scores,
    cmrc_segments,
    squad2_f1,
    squad2_scores,
    squad_scores,
)

# 16, 20 and 27 segments, each inside the next
_INNER = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"
NESTED = (_INNER, _INNER + "午未申酉", "天地" + _INNER + "午未申酉日月山川人")


@pytest.mark.parametrize(
    ("golds", "prediction", "exact", "f1"),
    [
        (["晨星和β-craft"], "晨星和β-Craft工坊", 0, 0.8),
        (list(NESTED), NESTED[1][2:], 0, 36 / 38),
        (["1987年"], "1987 年", 0, 1),
        (["2,000元"], "2000元", 0, 0.5),
        (["，"], "，", 1, 0),
        (["约8:45"], "约845", 1, 1),
        (["《群山》。"], "群山", 1, 1),
        (["好!"], "好！", 0, 2 / 3),
        (["好…"], "好", 0, 2 / 3),
        (["大海", "海"], "海", 1, 1),
        (["大海"], "海大", 0, 0.5),
        (["大海"], "", 0, 0),
    ],
)
def test_cmrc(golds: list[str], prediction: str, exact: float, f1: float) -> None:
    found = cmrc_scores({"Q": golds}, {"Q": prediction})
    assert list(found) == ["average", "exact_match", "f1"]
    assert found["exact_match"] == exact
    assert found["f1"] == pytest.approx(f1)
    assert found["average"] == pytest.approx((exact + f1) / 2)


def test_cmrc_segments_mix_characters_and_words() -> None:
    assert cmrc_segments("晨星和β-Craft工坊") == ["晨", "星", "和", "βcraft", "工", "坊"]
    assert cmrc_segments(" The U.S. team's 2,000元 (约) ") == [
        *("the", "u.s.", "team", "'s", "2,000", "元", "(", "约", ")"),
    ]


def test_cmrc_counts_a_missing_prediction_as_wrong() -> None:
    assert cmrc_scores({1: ["海"], 2: ["山"]}, {1: "海"}) == {"average": 0.5, "exact_match": 0.5, "f1": 0.5}


@pytest.mark.parametrize(
    ("gold", "prediction", "exact", "f1", "f1_of_2"),
    [
        ("Denver Broncos", "the Denver Broncos!", 1, 1, 1),
        ("Santa Clara", "Santa Clara, California", 0, 0.8, 0.8),
        ("a", "The", 1, 0, 1),
        ("a", "Theme", 0, 0, 0),
        ("blue blue sky", "blue sky sky", 0, 2 / 3, 2 / 3),
        ("two  words", "Two\twords.", 1, 1, 1),
    ],
)
def test_squad(gold: str, prediction: str, exact: float, f1: float, f1_of_2: float) -> None:
    found = squad_scores({"q": ["elsewhere", gold]}, {"q": prediction})
    assert list(found) == ["f1", "exact_match"]
    assert found["exact_match"] == exact and found["f1"] == pytest.approx(f1)
    assert squad2_f1(gold, prediction) == pytest.approx(f1_of_2)


def test_squad_counts_a_missing_prediction_as_wrong() -> None:
    assert squad_scores({1: ["sea"], 2: ["hill"]}, {1: "sea"}) == {"f1": 0.5, "exact_match": 0.5}


def test_squad2_with_and_without_answers() -> None:
    golds = {"a": ["red deer", "deer"], "b": ["sea"], "c": [], "d": [], "e": ["the"]}
    predictions = {"a": "red deer herd", "b": "", "c": "", "d": "sky", "e": "the"}
    candidates = {**predictions, "b": "sea", "c": "hill"}
    null_odds = {"a": -3.0, "b": 1.0, "c": 4.0, "d": -1.0, "e": -9.0}
    found = squad2_scores(
        Squad2Inputs(golds=golds, predictions=predictions, candidates=candidates, null_odds=null_odds)
    )
    assert list(found)[:2] == ["f1", "exact_match"]
    assert found["exact_match"] == pytest.approx(2 / 5)
    assert found["f1"] == pytest.approx((0.8 + 0 + 1 + 0 + 1) / 5)
    assert found["has_answer_exact_match"] == pytest.approx(1 / 3)
    assert found["has_answer_f1"] == pytest.approx(1.8 / 3)
    assert found["no_answer_exact_match"] == found["no_answer_f1"] == 1 / 2
    # by rising odds: e +1, a +.8 (0), d -1, b +1, c -1, from 2 questions without an answer
    assert found["best_f1"] == pytest.approx(3.8 / 5) and found["best_f1_threshold"] == -3.0
    assert found["best_exact_match"] == pytest.approx(3 / 5) and found["best_exact_match_threshold"] == -9.0


def test_squad2_leaves_out_missing_predictions_and_empty_groups() -> None:
    inputs = Squad2Inputs(
        golds={1: ["sea"], 2: ["hill"]}, predictions={1: "sea"}, candidates={1: "sea"}, null_odds={1: 0}
    )
    found = squad2_scores(inputs)
    assert found["exact_match"] == found["has_answer_f1"] == found["best_f1"] == 1
    assert not [name for name in found if name.startswith("no_answer")]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12))
def test_best_threshold_is_the_best_of_all_thresholds(questions: list[tuple[bool, float, bool]]) -> None:
    """Against every threshold in turn; a question has its own odds, which rise."""
    answerable: set[int | str] = {number for number, (has, _, _) in enumerate(questions) if has}
    scores = {n: overlap if n in answerable else 0.0 for n, (_, overlap, _) in enumerate(questions)}
    texts = {n: "x" if filled or n in answerable else "" for n, (_, _, filled) in enumerate(questions)}
    odds = {n: n - 5.0 for n in scores}

    def total(threshold: float) -> float:
        answered = [n for n in scores if odds[n] <= threshold]
        held_empty = [n for n in scores if odds[n] > threshold or not texts[n]]
        return sum(scores[n] for n in answered) + sum(n not in answerable for n in held_empty)

    best, threshold = best_threshold(scores, texts, odds, answerable)
    best *= len(questions)
    assert best == pytest.approx(max(total(t) for t in (-99.0, *odds.values())))
    assert best in (pytest.approx(total(threshold)), pytest.approx(len(questions) - len(answerable)))
