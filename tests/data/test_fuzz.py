"""Damaged files: an error or what was written, never a crash or a wrong read that nobody notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed import IndexedDataset
from megatron.data.sample_cache import SampleIndex, index_of_blocks, read_index, write_index
from megatron.data.samples import SampleRule, _blocks
from megatron.errors import UserError

from .made_up import open_made_up, random_documents, vocabulary, write_corpus

flips = st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 7)), min_size=1, max_size=4)


def flipped(content: bytes, places: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(content)
    for place, bit in places:
        damaged[place % len(content)] ^= 1 << bit
    return bytes(damaged)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> IndexedDataset:
    documents = random_documents(np.random.default_rng(0), 40, sentences=4, tokens=20)
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents)


@pytest.fixture(scope="module")
def cached(dataset: IndexedDataset) -> tuple[bytes, SampleIndex, Path]:
    """A sample index as a file, what it holds, and where to put damaged ones."""
    rule = SampleRule(seq_length=32, binary_head=True, short_seq_prob=0.1, seed=1)
    path = Path(dataset.prefix).parent / "index.samples"

    def blocks():
        return _blocks(dataset, "train", (0, dataset.num_documents), rule)

    write_index(path, blocks(), dataset.largest_token)
    return path.read_bytes(), index_of_blocks(blocks(), dataset.largest_token), path


def test_an_index_comes_back(cached: tuple[bytes, SampleIndex, Path]) -> None:
    content, expected, path = cached
    path.write_bytes(content)
    index = read_index(path)
    assert index is not None
    np.testing.assert_array_equal(index.rows, expected.rows)
    for name in ("documents", "short_documents", "largest_token"):
        assert getattr(index, name) == getattr(expected, name)


def test_every_truncated_index_is_refused(cached: tuple[bytes, SampleIndex, Path]) -> None:
    content, _, path = cached
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert read_index(path) is None
    path.write_bytes(content + b"\x00")
    assert read_index(path) is None


@settings(max_examples=300, deadline=None)
@given(places=flips)
def test_every_flipped_bit_of_an_index_is_found(places, cached) -> None:
    content, _, path = cached
    damaged = flipped(content, places)
    path.write_bytes(damaged)
    assert (read_index(path) is None) == (damaged != content)


@settings(max_examples=200, deadline=None)
@given(places=flips)
def test_batches_of_a_corpus_with_a_damaged_idx_stay_inside_its_files(places, dataset, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    source = Path(dataset.prefix)
    (folder / "a.bin").write_bytes(source.with_suffix(".bin").read_bytes())
    (folder / "a.idx").write_bytes(flipped(source.with_suffix(".idx").read_bytes(), places))
    try:
        split = open_made_up(folder / "a", tokenizer=vocabulary(int(dataset.largest_token) + 1))["train"]
        batch = split.assemble(0, 2 * split.samples_per_epoch[0])
    except UserError:
        return
    assert batch.tokens.max() <= dataset.largest_token and batch.lengths.max() <= 64


@settings(max_examples=100, deadline=None)
@given(places=flips)
def test_rows_damaged_after_they_were_checked_are_an_error_or_samples(places, dataset, tmp_path_factory) -> None:
    """The file changes under the run: whatever the rows say, nothing outside the files is read."""
    folder = tmp_path_factory.mktemp("changed")
    split = open_made_up(dataset.prefix, data_cache_path=str(folder), sentence_objective="nsp")["train"]
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:48] + flipped(content[48:], places))
    try:
        batch = split.assemble(0, split.samples_per_epoch[0])
    except UserError:
        return
    assert batch.tokens.max() <= dataset.largest_token
