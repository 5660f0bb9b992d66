"""What goes wrong in the data of Megatron-LM does not go wrong here: one test for each.

Its labels as `##` pieces: test_batches.py; its greedy order of blends: test_blend.py.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.sample_cache import first_sentences
from megatron.data.samples import SampleRule, open_sample_index
from megatron.errors import UserError

from .made_up import FIRST, open_made_up, random_documents, write_corpus


def build_mapping(documents: list[list[int]], longest: int) -> list[tuple[int, int]]:
    """Megatron's rule for pairs without short samples: (first sentence, the one after the last) of each, in order."""
    samples, first = [], 0
    for document in documents:
        start, tokens, end = first, 0, first + len(document)
        if len(document) >= 2:
            for sentence in range(first, end):
                tokens += document[sentence - first]
                enough = tokens >= longest and end - (sentence + 1) > 1 and sentence + 1 - start >= 2
                if enough or sentence + 1 == end:
                    samples.append((start, sentence + 1))
                    start, tokens = sentence + 1, 0
        first = end
    return samples


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.lists(st.integers(1, 29), max_size=12), min_size=1, max_size=8))
def test_where_the_rule_is_the_same_so_are_the_samples(documents, tmp_path_factory) -> None:
    """Pairs of sentences that fit, full samples: the runs of sentences are Megatron's."""
    if not any(len(document) >= 2 for document in documents):
        return
    dataset = write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents)
    rule = SampleRule(seq_length=32, binary_head=True, short_seq_prob=0.0, seed=1)
    index = open_sample_index(dataset, "train", (0, len(documents)), rule, None, wait_seconds=1.0)
    firsts = first_sentences(index.rows)
    ours = list(zip(firsts.tolist(), (firsts + index.rows["pieces"]).tolist(), strict=True))
    assert ours == build_mapping(documents, 29)


def test_ids_do_not_wrap(tmp_path: Path) -> None:
    writer = IndexedWriter(str(tmp_path / "a"), 60000, words=False)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        writer.add(np.array([70000]), np.array([1]), np.array([1]))
    writer.abort()


def test_no_usable_document_is_an_error_at_once(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[5]] * 1000)
    with pytest.raises(UserError, match="none of the 1000 documents"):
        open_made_up(dataset.prefix)


def test_a_document_with_one_long_sentence_is_used_whole(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 2000, 10]])
    split = open_made_up(dataset.prefix, sentence_objective="none", full_sentences=True)["train"]
    batch = split.assemble(0, split.samples_per_epoch[0])
    assert int((batch.lengths - 2).sum()) == 2020


def test_short_samples_have_odd_lengths_too(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[62]] * 400)
    batch = open_made_up(dataset.prefix, sentence_objective="none", short_seq_prob=1.0)["train"].assemble(0, 400)
    assert 0.4 < (batch.lengths % 2).mean() < 0.6


def test_every_sample_has_a_masked_token(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 400, tokens=3))
    batch = open_made_up(dataset.prefix, short_seq_prob=1.0, mask_prob=0.01)["train"].assemble(0, 2000)
    assert np.bincount(batch.masked_positions // 64, minlength=2000).min() >= 1


def test_a_part_of_an_epoch_repeats_nothing(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 1000)
    split = open_made_up(dataset.prefix)["train"]
    for epoch in range(3):
        seen = [split.documents_of(epoch * 1000 + number)[0][1] for number in range(500)]
        assert len(set(seen)) == 500


def test_another_split_never_finds_an_old_index(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 100)
    for split, expected in (("50,50", 50), ("80,20", 80), ("50,50", 50)):
        splits = open_made_up(dataset.prefix, split=split)
        documents = {
            name: {part.documents_of(number)[0][1] for number in range(part.samples_per_epoch[0])}
            for name, part in splits.items()
        }
        assert len(documents["train"]) == expected and not documents["train"] & documents["valid"]


def test_a_small_share_is_a_document_not_an_error(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 100)
    splits = open_made_up(dataset.prefix, split="949,50,1")
    assert [splits[name].samples_per_epoch for name in ("train", "valid", "test")] == [(94,), (5,), (1,)]


def test_arrays_outlive_the_dataset(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 100)
    sizes, documents, tokens, sentence = dataset.sizes, dataset.document_index, dataset.tokens, dataset.sentence(7)
    split = open_made_up(dataset.prefix)["train"]
    del dataset
    gc.collect()
    assert int(sizes.sum()) == len(tokens) == 2000 and documents.tolist()[-1] == 200
    assert sentence.tolist() == list(range(FIRST + 70, FIRST + 80))
    assembler = split.assembler
    del split
    gc.collect()
    assert len(assembler.assemble(0, 8)[0]) == 8


def test_weights_blend_sentence_pairs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_corpus(tmp_path / name, [[10, 10]] * 50)
    data_path = ("0.3", str(tmp_path / "one"), "0.7", str(tmp_path / "two"))
    split = open_made_up("", vocab_size=FIRST + 1000, data_path=data_path)["train"]
    assert split.assembler.taken(100) == [30, 70]
    assert IndexedDataset(str(tmp_path / "one")).num_documents == 50
