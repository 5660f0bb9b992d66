"""Official scores of reading comprehension, in [0, 1]: of CMRC 2018, SQuAD 1.1 and SQuAD 2.0.

Golden answers and predictions are by id of the question. The rules are those of the scripts that the makers of each
set publish; SQuAD 1.1 and CMRC count a missing prediction as wrong, SQuAD 2.0 leaves it out.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Golds = Mapping[Any, Sequence[str]]
Texts = Mapping[Any, str]

# What CMRC's script deletes. ASCII , . ! ? and the like stay, and so do ‘ … — (its `……` is no single character).
_CMRC_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = re.compile("([\u4e00-\u9fa5])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def cmrc_scores(golds: Golds, predictions: Texts) -> dict[str, float]:
    """Exact match and F1 of CMRC 2018 (`cmrc2018_evaluate.py`), and first their mean, which it calls average.

    An answer is lower-cased and freed of punctuation. F1 is of the longest run of segments that both answers share: a
    Chinese character is a segment, other text is split into words as NLTK does.
    """
    exact = _mean(golds, predictions, lambda gold, text: float(_cmrc_text(gold) == _cmrc_text(text)))
    f1 = _mean(golds, predictions, cmrc_f1)
    return {"average": (exact + f1) / 2, "exact_match": exact, "f1": f1}


def cmrc_f1(gold: str, prediction: str) -> float:
    """F1 of one prediction against one golden answer."""
    a, b = cmrc_segments(gold), cmrc_segments(prediction)
    shared = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def cmrc_segments(text: str) -> list[str]:
    """The segments of an answer, without the marks that do not count."""
    pieces = (piece for piece in _HAN.split(_cmrc_text(text)) if piece)
    return [segment for piece in pieces for segment in ([piece] if _HAN.match(piece) else _split_words()(piece))]


def squad_scores(golds: Golds, predictions: Texts) -> dict[str, float]:
    """F1 and exact match of SQuAD 1.1 (`evaluate-v1.1.py`)."""

    def f1(gold: str, text: str) -> float:
        return _overlap_f1(_normalized(gold).split(), _normalized(text).split())

    return {"f1": _mean(golds, predictions, f1), "exact_match": _mean(golds, predictions, _exact)}


@dataclass(frozen=True, kw_only=True)
class Squad2Inputs:
    """What SQuAD 2.0 is scored from.

    predictions: answers, empty where a question is held to have none. candidates: the best spans whatever was held of
    the question, and null_odds: how sure it is that there is none, of which the best threshold is sought.
    """

    golds: Golds
    predictions: Texts
    candidates: Texts
    null_odds: Mapping[Any, float]


def squad2_scores(inputs: Squad2Inputs) -> dict[str, float]:
    """F1 and exact match of SQuAD 2.0 (`evaluate-v2.0.py`): of all questions, of those with and without an answer
    (HasAns, NoAns), and of all with the best threshold on null_odds, with that threshold."""
    golds = {number: _real_golds(answers) for number, answers in inputs.golds.items()}
    answerable = {number for number, answers in inputs.golds.items() if answers}
    found: dict[str, float] = {}
    metrics: dict[str, Callable[[str, str], float]] = {"f1": squad2_f1, "exact_match": _exact}
    for name, metric in metrics.items():
        scores = _scores(golds, inputs.predictions, metric)
        groups = {
            "": list(scores),
            "has_answer_": [number for number in scores if number in answerable],
            "no_answer_": [number for number in scores if number not in answerable],
        }
        for group, numbers in groups.items():
            if numbers:
                found[group + name] = sum(scores[number] for number in numbers) / len(numbers)
    for name, metric in metrics.items():
        scores = _scores(golds, inputs.candidates, metric)
        found[f"best_{name}"], found[f"best_{name}_threshold"] = best_threshold(
            scores, inputs.candidates, inputs.null_odds, answerable
        )
    first = ("f1", "exact_match")
    return {name: found[name] for name in (*first, *(name for name in found if name not in first))}


def best_threshold(
    scores: Mapping[Any, float],
    predictions: Texts,
    null_odds: Mapping[Any, float],
    answerable: set[Any],
) -> tuple[float, float]:
    """The best mean score that a threshold on null_odds gives, and the threshold above which there is no answer.

    scores: of predictions without a threshold. As the script does: all questions are held to have no answer at first,
    and get theirs one by one by rising odds; the first maximum is kept, 0 where nothing is above the start.
    """
    current = best = float(sum(number not in answerable for number in scores))
    threshold = 0.0
    for number in sorted(scores, key=lambda number: null_odds[number]):
        current += scores[number] if number in answerable else -float(bool(predictions[number]))
        if current > best:
            best, threshold = current, null_odds[number]
    return best / len(scores), threshold


def squad2_f1(gold: str, prediction: str) -> float:
    """Overlap of words; where a side has none, whether both have none."""
    a, b = _normalized(gold).split(), _normalized(prediction).split()
    return _overlap_f1(a, b) if a and b else float(a == b)


def _real_golds(answers: Sequence[str]) -> list[str]:
    return [answer for answer in answers if _normalized(answer)] or [""]


def _exact(gold: str, prediction: str) -> float:
    return float(_normalized(gold) == _normalized(prediction))


def _normalized(text: str) -> str:
    """Lower case, without punctuation (ASCII) and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _overlap_f1(a: list[str], b: list[str]) -> float:
    """F1 of two bags of words."""
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def _cmrc_text(text: str) -> str:
    return text.lower().strip().translate(_CMRC_MARKS)


def _scores(golds: Golds, predictions: Texts, metric: Callable[[str, str], float]) -> dict[Any, float]:
    """The score of each prediction: its best over the golden answers."""
    return {
        number: max(metric(gold, predictions[number]) for gold in answers)
        for number, answers in golds.items()
        if number in predictions
    }


def _mean(golds: Golds, predictions: Texts, metric: Callable[[str, str], float]) -> float:
    return sum(_scores(golds, predictions, metric).values()) / len(golds)


@cache
def _split_words() -> Callable[[str], list[str]]:
    """NLTK's tokenizer of words, imported where it is needed: that takes a second. It needs no data of NLTK's."""
    from nltk.tokenize import NLTKWordTokenizer

    split: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    return split
