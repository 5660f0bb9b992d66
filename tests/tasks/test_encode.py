"""Token ids of examples: layout, truncation, padding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.tasks.encode import Encoded, encode_texts, kept_lengths


@dataclass(frozen=True)
class Characters:
    """A tokenizer of code points."""

    pad_id: int = 0
    cls_id: int = 1
    sep_id: int = 2

    def encode_batch(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [([ord(c) for c in text], [(i, i + 1) for i in range(len(text))]) for text in texts]


def encode(*texts: tuple[str, ...], seq_length: int = 64, truncate: str = "longest") -> Encoded:
    labels = np.arange(len(texts))
    return encode_texts(texts, labels, Characters(), seq_length=seq_length, truncate=truncate)  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    """ "^" for [CLS], "$" for [SEP], "_" for padding."""
    return [{"^": 1, "$": 2, "_": 0}.get(c, ord(c)) for c in text]


def test_one_and_two_segments() -> None:
    encoded = encode(("abc",), ("de", "f"), ("",), ("", "g"), seq_length=16)
    batch = encoded.batch(np.array([1, 0, 2, 3]))
    assert batch.tokens.tolist() == [ids("^de$f$"), ids("^abc$_"), ids("^$____"), ids("^$g$__")]
    assert batch.token_types.tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6, [0] * 6, [0, 0, 1, 1, 0, 0]]
    assert batch.lengths.tolist() == [6, 5, 2, 4]
    assert batch.labels.tolist() == [1, 0, 2, 3]
    assert encoded.truncated == 0
    assert encoded.batch(np.array([], dtype=np.int64)).tokens.shape == (0, 0)


@pytest.mark.parametrize(
    ("texts", "truncate", "expected"),
    [
        (("abcdefghij",), "longest", "^abcdef$"),
        (("abcdefghij",), "second", "^abcdef$"),
        (("abcdefghij", "k"), "longest", "^abcd$k$"),
        (("a", "klmnopqrst"), "longest", "^a$klmn$"),
        (("abcdefghij", "klmnopqrst"), "longest", "^abc$kl$"),
        (("abc", "klmnopqrst"), "second", "^abc$kl$"),
        (("abcd", "k"), "second", "^abcd$k$"),
        (("abcdefghij", "k"), "second", "^abcde$$"),
    ],
)
def test_truncation(texts: tuple[str, ...], truncate: str, expected: str) -> None:
    encoded = encode(texts, seq_length=8, truncate=truncate)
    assert encoded.tokens.tolist() == ids(expected)
    assert encoded.truncated == (len("".join(texts)) > 8 - 1 - len(texts))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_longest_first_is_berts_loop(first: int, second: int, room: int) -> None:
    expected = [first, second]
    while sum(expected) > room:  # google-research/bert: the longer loses its last token, of equal ones the second
        expected[0 if expected[0] > expected[1] else 1] -= 1
    assert kept_lengths([first, second], room, "longest") == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 60))
def test_of_several_segments_the_longest_loses_first(sizes: list[int], room: int) -> None:
    expected = list(sizes)
    while sum(expected) > room:
        longest = max(range(len(expected)), key=lambda number: (expected[number], number))
        expected[longest] -= 1
    assert kept_lengths(sizes, room, "longest") == expected


def test_three_segments() -> None:
    encoded = encode(("abcdef", "ghi", "j"), ("a", "b", "c"), seq_length=11)
    batch = encoded.batch(np.array([0, 1]))
    assert batch.tokens.tolist() == [ids("^abc$ghi$j$"), ids("^a$b$c$____")]
    assert batch.token_types.tolist() == [[0] * 5 + [1] * 6, [0] * 3 + [1] * 4 + [0] * 4]
    assert encoded.truncated == 1


@given(st.lists(st.tuples(st.text("abc", max_size=9), st.text("xyz", max_size=9)), min_size=1, max_size=20))
def test_batches_hold_the_rows_asked_for(pairs: list[tuple[str, str]]) -> None:
    encoded = encode(*pairs)
    rows = np.arange(len(pairs))[::-2]
    batch = encoded.batch(rows)
    for place, row in enumerate(rows):
        first, second = pairs[row]
        assert batch.tokens[place, : batch.lengths[place]].tolist() == ids(f"^{first}${second}$")
        assert batch.token_types[place].sum() == len(second) + 1


def test_rows_of_several_inputs_stay_together() -> None:
    texts = [("a", "b"), ("a", "cd"), ("e", "f"), ("e", "ghi")]
    encoded = encode_texts(texts, [1, 0], Characters(), seq_length=16, truncate="longest", row_inputs=2)  # type: ignore[arg-type]
    assert encoded.lengths.tolist() == [6, 7] and encoded.num_rows == 2
    batch = encoded.batch(np.array([1, 0]))
    assert batch.tokens.tolist() == [ids("^e$f$__"), ids("^e$ghi$"), ids("^a$b$__"), ids("^a$cd$_")]
    assert batch.labels.tolist() == [0, 1] and batch.inputs.tolist() == [2, 3, 0, 1]


def test_labels_of_tokens_are_padded_and_counted() -> None:
    encoded = encode(("abc",), ("d",))
    labels = np.array([-100, 0, -100, 2, -100, -100, 1, -100])
    encoded = dataclasses.replace(encoded, labels=labels, token_labels=True)
    batch = encoded.batch(np.array([1, 0]))
    assert batch.labels.tolist() == [[-100, 1, -100, -100, -100], [-100, 0, -100, 2, -100]]
    assert [encoded.count(np.array(rows)) for rows in ([0], [1], [0, 1])] == [2, 1, 3]
