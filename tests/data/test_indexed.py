"""Megatron's .bin/.idx byte for byte, the word-boundary companion, and refusal of damaged files."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed import IndexedDataset, IndexedWriter, token_dtype
from megatron.errors import UserError

# Megatron-LM's own bytes for two documents of uint16 tokens.
GOLDEN_SENTENCES = [[2769, 4263, 1266, 776, 511], [1921, 2697, 2523, 1962, 511], [704, 1744, 8013]]
GOLDEN_INDEX = bytes.fromhex(
    "4d4d4944494458000001000000000000"
    "00080300000000000000030000000000"
    "00000500000005000000030000000000"
    "0000000000000a000000000000001400"
    "00000000000000000000000000000200"
    "0000000000000300000000000000"
)
GOLDEN_INDEX_SHA256 = "420c92439059829afe3e35a381bbe2a213dc3f546da8bcf142806cf6ddd0338a"
GOLDEN_BIN = bytes.fromhex("d10aa710f2040803ff018107890adb09aa07ff01c002d0064d1f")


def write(prefix: Path, documents: list[list[list[int]]], vocab_size: int, words: list[bool] | None = None) -> None:
    sentences = [sentence for document in documents for sentence in document]
    writer = IndexedWriter(str(prefix), vocab_size, words is not None)
    writer.add(
        np.array([token for sentence in sentences for token in sentence], dtype=np.int64),
        np.array([len(sentence) for sentence in sentences]),
        np.array([len(document) for document in documents]),
        None if words is None else np.array(words),
    )
    writer.finish()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The golden corpus as bytes, not through the writer."""
    prefix = tmp_path / "golden_text_sentence"
    prefix.with_suffix(".idx").write_bytes(GOLDEN_INDEX)
    prefix.with_suffix(".bin").write_bytes(GOLDEN_BIN)
    return prefix


def index_bytes(code: int, sizes: list[int], pointers: list[int], documents: list[int], version: int = 1) -> bytes:
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(sizes), len(documents))
    return header + struct.pack(f"<{len(sizes)}i{len(sizes)}q{len(documents)}q", *sizes, *pointers, *documents)


def test_writes_the_bytes_of_megatron(tmp_path: Path) -> None:
    prefix = tmp_path / "out_text_sentence"
    write(prefix, [GOLDEN_SENTENCES[:2], GOLDEN_SENTENCES[2:]], 21128)
    assert prefix.with_suffix(".idx").read_bytes() == GOLDEN_INDEX
    assert hashlib.sha256(GOLDEN_INDEX).hexdigest() == GOLDEN_INDEX_SHA256
    assert prefix.with_suffix(".bin").read_bytes() == GOLDEN_BIN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_text_sentence.bin", "out_text_sentence.idx"]


def test_reads_the_bytes_of_megatron(golden: Path) -> None:
    dataset = IndexedDataset(str(golden))
    assert (dataset.num_documents, dataset.num_sentences, dataset.num_tokens) == (2, 3, 13)
    assert [dataset.sentence(i).tolist() for i in range(3)] == GOLDEN_SENTENCES
    assert dataset.document_index.tolist() == [0, 2, 3]
    assert dataset.words is None
    assert dataset.word_starts(0) is None
    assert dataset.largest_token == 8013


@pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_reads_every_integer_type(tmp_path: Path, code: int, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    (tmp_path / "a.idx").write_bytes(index_bytes(code, [2, 0, 1], [0, 2 * size, 2 * size], [0, 2, 3]))
    (tmp_path / "a.bin").write_bytes(np.array([5, 6, 127], dtype=dtype).tobytes())
    dataset = IndexedDataset(str(tmp_path / "a"))
    assert dataset.dtype_code == code
    assert [dataset.sentence(i).tolist() for i in range(3)] == [[5, 6], [], [127]]
    assert dataset.largest_token == 127


def test_dtype_follows_the_rule_of_megatron(tmp_path: Path) -> None:
    assert token_dtype(65499) == np.uint16
    assert token_dtype(65500) == np.int32
    write(tmp_path / "large", [[[70000]]], 80000)
    assert IndexedDataset(str(tmp_path / "large")).sentence(0).tolist() == [70000]


documents_strategy = st.lists(
    st.lists(st.lists(st.tuples(st.integers(0, 29999), st.booleans()), max_size=9), max_size=4), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(documents_strategy, min_size=1, max_size=4))
def test_any_corpus_in_any_parts_comes_back(parts, tmp_path_factory) -> None:
    prefix = str(tmp_path_factory.mktemp("corpus") / "a_text_sentence")
    writer = IndexedWriter(prefix, 30000, words=True)
    for documents in parts:
        sentences = [sentence for document in documents for sentence in document]
        pairs = [pair for sentence in sentences for pair in sentence]
        writer.add(
            np.array([token for token, _ in pairs], dtype=np.int64),
            np.array([len(sentence) for sentence in sentences], dtype=np.int64),
            np.array([len(document) for document in documents], dtype=np.int64),
            np.array([start for _, start in pairs], dtype=bool),
        )
    expected = [document for documents in parts for document in documents]
    if not any(sentence for document in expected for sentence in document):
        with pytest.raises(UserError, match="no text"):
            writer.finish()
        return
    writer.finish()
    dataset = IndexedDataset(prefix)
    assert dataset.num_documents == len(expected)
    for number, document in enumerate(expected):
        first, last = dataset.document_index[number : number + 2].tolist()
        assert last - first == len(document)
        for sentence, pairs in zip(range(first, last), document, strict=True):
            assert dataset.sentence(sentence).tolist() == [token for token, _ in pairs]
            assert dataset.word_starts(sentence).tolist() == [start for _, start in pairs]


def test_nothing_appears_before_finish_or_after_abort(tmp_path: Path) -> None:
    writer = IndexedWriter(str(tmp_path / "a"), 100, words=True)
    writer.add(np.array([1, 2]), np.array([2]), np.array([1]), np.array([True, False]))
    assert not any(path.suffix in (".bin", ".idx", ".words") for path in tmp_path.iterdir())
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_new_corpus_leaves_no_old_word_marks(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2, 3]]], 100, words=[True, False, True])
    write(tmp_path / "a", [[[4, 5]]], 100)
    assert IndexedDataset(str(tmp_path / "a")).words is None


@pytest.mark.parametrize(
    ("tokens", "lengths", "documents", "starts"),
    [
        ([1, 100], [2], [1], [1, 1]),
        ([-1, 1], [2], [1], [1, 1]),
        ([1, 2], [1], [1], [1, 1]),
        ([1, 2], [2], [2], [1, 1]),
        ([1, 2], [3, -1], [2], [1, 1]),
        ([1, 2], [2], [1], [1]),
        ([1, 2], [2], [1], None),
    ],
)
def test_writer_refuses_what_does_not_fit(tmp_path: Path, tokens, lengths, documents, starts) -> None:
    writer = IndexedWriter(str(tmp_path / "a"), 100, words=True)
    with pytest.raises(ValueError):
        writer.add(np.array(tokens), np.array(lengths), np.array(documents), starts and np.array(starts))
    writer.abort()


def test_writer_names_a_folder_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.bin"):
        IndexedWriter(str(tmp_path / "file" / "a"), 100, words=False)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_missing_and_empty_files_are_named(golden: Path, suffix: str) -> None:
    golden.with_suffix(suffix).write_bytes(b"")
    with pytest.raises(UserError, match=rf"golden_text_sentence\{suffix} is empty"):
        IndexedDataset(str(golden))
    golden.with_suffix(suffix).unlink()
    with pytest.raises(UserError, match=rf"golden_text_sentence\{suffix} does not exist"):
        IndexedDataset(str(golden))


def test_every_truncation_of_the_index_is_refused(golden: Path) -> None:
    for length in range(1, len(GOLDEN_INDEX)):
        golden.with_suffix(".idx").write_bytes(GOLDEN_INDEX[:length])
        with pytest.raises(UserError, match="truncated"):
            IndexedDataset(str(golden))


def test_every_truncation_of_the_tokens_is_refused(golden: Path) -> None:
    for length in range(1, len(GOLDEN_BIN)):
        golden.with_suffix(".bin").write_bytes(GOLDEN_BIN[:length])
        with pytest.raises(UserError, match="truncated"):
            IndexedDataset(str(golden))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 93), value=st.integers(0, 255))
def test_a_changed_byte_of_the_index_never_reads_outside_the_files(position, value, tmp_path_factory) -> None:
    prefix = tmp_path_factory.mktemp("damaged") / "a"
    damaged = bytearray(GOLDEN_INDEX)
    damaged[position] = value
    prefix.with_suffix(".idx").write_bytes(damaged)
    prefix.with_suffix(".bin").write_bytes(GOLDEN_BIN)
    try:
        dataset = IndexedDataset(str(prefix))
    except UserError:
        return
    for number in range(dataset.num_sentences):
        assert len(dataset.sentence(number)) == dataset.sizes[number]


HOSTILE = {
    "old 'lazy/cached' format": b"TNTIDX\x00\x00" + bytes(100),
    "no index of a Megatron corpus": b"\x93NUMPY" + bytes(100),
    "format version 2": index_bytes(8, [13], [0], [0, 1], version=2),
    "dtype code 7": index_bytes(7, [13], [0], [0, 1]),
    "holds no sentence": index_bytes(8, [], [], [0]),
    "is damaged: .* bytes, expected": GOLDEN_INDEX + b"\x00",
    "negative length": index_bytes(8, [-1, 5], [0, 0], [0, 2]),
    "negative .* offset": index_bytes(8, [5], [-2], [0, 1]),
    "the index names more": index_bytes(8, [14], [0], [0, 1]),
    "index names more": index_bytes(8, [5], [2**62], [0, 1]),
    "whole token": index_bytes(8, [5], [1], [0, 1]),
    "do not cover": index_bytes(8, [5, 5], [0, 10], [0, 1]),
    "documents do not cover": index_bytes(8, [5], [0], [1]),
    "not ascending": index_bytes(8, [5, 5], [0, 10], [0, 3, 1, 2]),
    "is truncated": b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2**60, 2**61),
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_index_is_refused_with_its_reason(golden: Path, reason: str) -> None:
    golden.with_suffix(".idx").write_bytes(HOSTILE[reason])
    with pytest.raises(UserError, match=reason):
        IndexedDataset(str(golden))


def test_negative_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(index_bytes(4, [2], [0], [0, 1]))
    (tmp_path / "a.bin").write_bytes(np.array([5, -1], dtype="<i4").tobytes())
    with pytest.raises(UserError, match="negative token id"):
        _ = IndexedDataset(str(tmp_path / "a")).largest_token


def test_word_marks_of_another_corpus_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2, 3]]], 100, words=[True, False, True])
    words = tmp_path / "a.words"
    good = words.read_bytes()
    assert good == b"MWORDS\x00\x01" + struct.pack("<Q", 3) + b"\x05"
    for bad in (b"", good[:-1], good + b"\x00", b"X" + good[1:], good[:8] + struct.pack("<Q", 4) + good[16:]):
        words.write_bytes(bad)
        with pytest.raises(UserError, match=r"a\.words"):
            IndexedDataset(str(tmp_path / "a"))


def test_the_data_card_tells_another_vocabulary(golden: Path) -> None:
    dataset = IndexedDataset(str(golden))
    dataset.check_card("abc")
    card = golden.with_suffix(".json")
    card.write_text('{"vocabulary_hash": "abc"}')
    dataset.check_card("abc")
    with pytest.raises(UserError, match="another vocabulary"):
        dataset.check_card("abd")
    card.write_text("{")
    with pytest.raises(UserError, match="no readable data card"):
        dataset.check_card("abc")
