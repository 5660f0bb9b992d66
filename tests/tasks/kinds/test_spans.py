"""Questions on contexts: windows, their labels and loss, and the answers that scores of tokens give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded
from megatron.tasks.kinds.spans import SPANS, Answer, Question, reading_of
from megatron.tasks.table import find_task
from megatron.tasks.task import Reading, Task
from tests.tasks.test_encode import Characters, ids


def task_with(**options: object) -> Task:
    return dataclasses.replace(find_task("cmrc2018"), reading=Reading(**options))  # type: ignore[arg-type]


def encode(task: Task, *examples: Question, seq_length: int = 12) -> Encoded:
    return SPANS.encode(task, examples, Characters(), seq_length)  # type: ignore[arg-type]


def question(context: str, span: tuple[int, int] | None = None, text: str = "qu") -> Question:
    return Question("id", text, context, () if span is None else (context[slice(*span)],), span)


def scored(encoded: Encoded, *spans: tuple[int, str, str, float]) -> np.ndarray:
    """Scores of tokens: 0, but of the first and last token of some windows' spans, by their characters."""
    outputs = np.zeros((len(encoded.tokens), 2), dtype=np.float32)
    for window, first, last, score in spans:
        tokens = encoded.tokens[encoded.offsets[window] : encoded.offsets[window + 1]].tolist()
        for column, character in enumerate((first, last)):
            outputs[encoded.offsets[window] + tokens.index(ids(character)[0]), column] += score / 2
    return outputs


def decode(task: Task, examples: Sequence[Question], encoded: Encoded, outputs: np.ndarray) -> list[Answer]:
    return SPANS.decode(task, examples, encoded, outputs)


def test_windows_of_a_long_context() -> None:
    """12 tokens: room for 7 of the context beside [CLS] qu [SEP] and [SEP]."""
    examples = [question("abcdefghijkl", (6, 9)), question("xyz", (0, 3)), question("", (0, 0))]
    encoded = encode(task_with(doc_stride=3), *examples)
    batch = encoded.batch(np.arange(encoded.num_rows))
    expected = ["^qu$abcdefg$", "^qu$defghij$", "^qu$ghijkl$_", "^qu$xyz$____", "^qu$$_______"]
    assert batch.tokens.tolist() == [ids(row) for row in expected]
    assert batch.token_types[2].tolist() == [0] * 4 + [1] * 7 + [0]
    assert encoded.examples is not None and encoded.examples.tolist() == [0, 0, 0, 1, 2]
    # "ghi" is cut in the first window, and stands in the others; an empty span is [CLS]
    assert batch.labels.tolist() == [[0, 0], [7, 9], [4, 6], [4, 6], [0, 0]]
    assert encoded.places is not None
    assert encoded.places[encoded.offsets[1] : encoded.offsets[2]].tolist() == [
        *[[-1, -1]] * 4,
        *[[place, place + 1] for place in range(3, 10)],
        [-1, -1],
    ]
    assert (encoded.truncated, encoded.notes, encoded.num_inputs) == (0, (), 5)
    assert encoded.count(np.arange(5)) == 5


def test_strides_longer_than_a_window_leave_nothing_out() -> None:
    encoded = encode(task_with(doc_stride=100), question("abcdefghijklmnop"))
    tokens = encoded.batch(np.arange(encoded.num_rows)).tokens
    assert tokens.tolist() == [ids("^qu$abcdefg$"), ids("^qu$hijklmn$"), ids("^qu$op$_____")]
    assert (encoded.labels == IGNORED).all() and encoded.count(np.arange(3)) == 0


def test_long_questions_are_cut_and_mended_answers_told() -> None:
    example = dataclasses.replace(question("abc", (0, 1), text="question"), moved=True)
    encoded = encode(task_with(max_query_length=4), example)
    assert encoded.tokens.tolist() == ids("^ques$abc$")
    assert encoded.truncated == 1 and encoded.notes == ("1 answers moved to where their text stands",)
    with pytest.raises(UserError, match=r"--seq-length 8 has no room .* question id of 8 tokens.*--max-query-length"):
        encode(task_with(), example, seq_length=8)


contexts = st.text("abcdef 山", max_size=40)


@given(contexts, st.integers(8, 20), st.integers(1, 20), st.data())
def test_every_token_is_in_a_window_and_labels_give_the_answer(
    context: str, seq_length: int, stride: int, data: st.DataObject
) -> None:
    task = task_with(doc_stride=stride, max_answer_length=seq_length)
    room = seq_length - 5
    begin = data.draw(st.integers(0, max(len(context) - 1, 0)))
    end = data.draw(st.integers(begin, min(begin + room, len(context))))
    example = question(context, (begin, end))
    encoded = encode(task, example, seq_length=seq_length)
    assert encoded.places is not None and int(np.diff(encoded.offsets).max()) <= seq_length
    real = encoded.places[:, 0] >= 0
    assert set(map(tuple, encoded.places[real].tolist())) == {(place, place + 1) for place in range(len(context))}
    assert encoded.tokens[real].tolist() == [ord(context[place]) for place in encoded.places[real, 0]]

    outputs = np.zeros((len(encoded.tokens), 2), dtype=np.float32)
    for window, (first, last) in enumerate(encoded.labels.tolist()):
        outputs[encoded.offsets[window] + first, 0] += 9 * (first > 0)
        outputs[encoded.offsets[window] + last, 1] += 9 * (last > 0)
    held = (encoded.labels > 0).any()
    answer = context[begin:end].strip()
    if min(stride, room) <= room - (end - begin) + 1 and begin < end:
        assert held  # windows overlap by more than the answer's length
    if held and answer:
        (found,) = decode(task, [example], encoded, outputs)
        assert (found.text, context[found.start : found.stop]) == (answer, answer)
        assert begin <= found.start < found.stop <= end


def test_words_of_a_real_vocabulary(tmp_path: Path) -> None:
    """Lower case, stripped accents and pieces of words; the answer is cut from the context as it was written."""
    tokens = "[PAD] [UNK] [CLS] [SEP] [MASK] cafe ##s the in par ##is open , 1 ##9 ##99 : 山 水".split()
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer("BertWordPieceLowerCase", vocab_file=tmp_path / "vocab.txt")
    context = "The  Cafés in Paris, open: 1999山水 \U0001f600 ok"
    task = task_with()
    for answer in ("Cafés in Paris", "1999", "山水", "\U0001f600", "The  Cafés"):
        begin = context.index(answer)
        example = question(context, (begin, begin + len(answer)), text="the")
        encoded = SPANS.encode(task, [example], tokenizer, 64)
        ((first, last),) = encoded.labels.tolist()
        assert first >= 3
        outputs = np.zeros((len(encoded.tokens), 2), dtype=np.float32)
        outputs[first, 0] = outputs[last, 1] = 5
        assert decode(task, [example], encoded, outputs)[0].text == answer


def test_loss_is_the_mean_of_both_cross_entropies_over_real_tokens() -> None:
    task = task_with()
    examples = [question("abcdefg", (2, 4)), question("ab"), question("abc", (0, 0))]
    encoded = encode(task, *examples)
    batch = encoded.batch(np.array([2, 0, 1]), multiple=16)
    outputs = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert encoded.count(np.array([2, 0, 1])) == 2
    total, hits = SPANS.loss(task, outputs, batch)
    expected = torch.zeros(())
    for row, (first, last) in ((0, (0, 0)), (1, (6, 7))):  # the last has no label
        real = outputs[row, : int(batch.lengths[row])]
        expected = expected - (real[:, 0].log_softmax(0)[first] + real[:, 1].log_softmax(0)[last]) / 2
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert hits.item() == 0
    total.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()
    assert not outputs.grad[0, 8:].any() and not outputs.grad[2].any()
    with torch.no_grad():
        outputs[1, 6, 0] = outputs[1, 7, 1] = outputs[0, 0, 0] = 9
        outputs[0, 15, 1] = outputs[2] = 99  # padding and a row without label
        assert SPANS.loss(task, outputs, batch)[1].item() == 1


def test_the_best_span_of_all_windows() -> None:
    task = task_with(doc_stride=4, max_answer_length=4, n_best_size=3)
    examples = [question("abcdefghijkl"), question("mno")]
    encoded = encode(task, *examples)
    outputs = scored(encoded, (0, "a", "b", 4), (0, "e", "g", 5), (1, "e", "g", 7), (1, "h", "h", 2), (3, "n", "o", 6))
    first, second = decode(task, examples, encoded, outputs)
    assert (first.text, first.start, first.stop) == ("efg", 4, 7)
    assert (second.text, second.start, second.stop) == ("no", 1, 3)
    assert [span.text for span in first.best] == ["efg", "efgh", "ab"]  # e's 3.5 and h's 1 make 4.5
    expected = softmax([7, 4.5, 4])
    assert [span.probability for span in first.best] == pytest.approx(expected)
    assert first.probability == pytest.approx(expected[0]) and first.null_odds == -7


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [("f", "c", "ends before it begins"), ("b", "g", "is too long"), ("q", "u", "is in the question"), ("^", "^", "")],
)
def test_spans_that_are_none(first: str, last: str, why: str) -> None:
    task = task_with(max_answer_length=5)
    examples = [question("abcdefg")]
    encoded = encode(task, *examples)
    outputs = scored(encoded, (0, first, last, 50), (0, "c", "c", 1))
    (found,) = decode(task, examples, encoded, outputs)
    assert found.text in "abcdefg" and len(found.text) <= 5 and found.text


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 30))
def test_the_answer_is_the_best_of_all_valid_spans(seed: int, longest: int, length: int) -> None:
    """Against every pair of tokens of every window, where all tokens are among the n best."""
    task = task_with(doc_stride=3, max_answer_length=longest, n_best_size=20)
    context = "".join(map(chr, range(0x4E00, 0x4E00 + length)))
    encoded = encode(task, question(context))
    assert encoded.places is not None
    outputs = np.random.default_rng(seed).normal(size=(len(encoded.tokens), 2)).astype(np.float32)
    best = max(
        (float(outputs[i, 0]) + float(outputs[j, 1]), *encoded.places[[i, j], [0, 1]].tolist())
        for begin, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
        for i in range(begin, end)
        for j in range(i, min(i + longest, end))
        if min(encoded.places[i, 0], encoded.places[j, 0]) >= 0
    )
    (found,) = decode(task, [question(context)], encoded, outputs)
    assert (found.start, found.stop) == best[1:]
    null = min(float(outputs[begin].sum(dtype=np.float64)) for begin in encoded.offsets[:-1])
    assert found.null_odds == pytest.approx(null - best[0], abs=1e-5)
    assert len({(span.start, span.stop) for span in found.best}) == len(found.best) <= 20
    assert sorted((span.probability for span in found.best), reverse=True) == [s.probability for s in found.best]


@pytest.mark.parametrize(("threshold", "text"), [(0.0, ""), (1.0, "fg"), (-9.0, "")])
def test_no_answer_where_it_scores_above_the_threshold(threshold: float, text: str) -> None:
    """[CLS] scores 4 and 9: the lesser counts. The best span scores 3."""
    task = task_with(doc_stride=4, version_2_with_negative=True, null_score_diff_threshold=threshold)
    examples = [question("abcdefghi")]
    encoded = encode(task, *examples)
    outputs = scored(encoded, (0, "^", "^", 4), (1, "^", "^", 9), (1, "f", "g", 3))
    (found,) = decode(task, examples, encoded, outputs)
    assert (found.text, found.null_odds, found.best[0].text) == (text, 1, "fg")
    if not text:
        assert (found.start, found.stop) == (0, 0)
        assert found.probability / found.best[0].probability == pytest.approx(np.e)
    plain = dataclasses.replace(task, reading=dataclasses.replace(reading_of(task), version_2_with_negative=False))
    assert decode(plain, examples, encoded, outputs)[0].text == "fg"


def test_nothing_is_found_in_an_empty_context() -> None:
    task = task_with()
    examples = [question(""), question("   ")]
    encoded = encode(task, *examples)
    outputs = np.ones((len(encoded.tokens), 2), dtype=np.float32)
    assert decode(task, examples, encoded, outputs) == [Answer("", 0, 0, 1.0, 0.0, ())] * 2
