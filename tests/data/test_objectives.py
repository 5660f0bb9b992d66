"""What the segments of a sample are, what is masked, and how much: the choices besides the default ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron.data.batches import Batch, Split
from megatron.data.indexed import IndexedDataset

from .made_up import FIRST, open_made_up, random_documents, restored, segments_of, write_corpus


def owners_of(dataset: IndexedDataset) -> np.ndarray:
    """The document of each token."""
    sentences = np.repeat(np.arange(dataset.num_documents), np.diff(dataset.document_index))
    return np.repeat(sentences, dataset.sizes)


def epoch_of(split: Split, epoch: int = 0) -> Batch:
    (count,) = split.samples_per_epoch
    return split.assemble(epoch * count, count)


def segments(batch: Batch) -> list[list[np.ndarray]]:
    """The segments of each sample as places of tokens in the corpus."""
    return [
        [segment - FIRST for segment in segments_of(row, length)]
        for row, length in zip(restored(batch), batch.lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> IndexedDataset:
    documents = random_documents(np.random.default_rng(2), 500, sentences=10, tokens=20)
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents)


def test_next_sentence_is_of_another_document_half_of_the_time(dataset: IndexedDataset) -> None:
    split = open_made_up(dataset.prefix, sentence_objective="nsp")["train"]
    owner, documents = owners_of(dataset), []
    for epoch in range(3):
        batch = epoch_of(split, epoch)
        for sample, (a, b), label in zip(batch.samples, segments(batch), batch.sop_labels, strict=True):
            assert len(set(owner[a])) == len(set(owner[b])) == 1
            assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
            assert label == (owner[a[0]] != owner[b[0]])
            if label == 0:
                assert b[0] > a[-1], "what follows, in order"
            names = [(dataset.prefix, owner[segment[0]]) for segment in ([a, b] if label else [a])]
            assert split.documents_of(int(sample)) == names
            documents.append(int(label))
    assert abs(np.mean(documents) - 0.5) < 5 * np.sqrt(2 * 0.25 / len(documents)), "pairs share their coin"


def test_next_sentence_uses_every_sentence_once_an_epoch(tmp_path: Path) -> None:
    # Nothing is cut away: every document is one sample, shorter than the sequence.
    dataset = write_corpus(tmp_path / "a", [[5, 6, 7]] * 301)
    split = open_made_up(dataset.prefix, sentence_objective="nsp", short_seq_prob=0.0)["train"]
    for epoch in range(2):
        batch = epoch_of(split, epoch)
        used = Counter(int(place) for sample in segments(batch) for segment in sample for place in segment)
        assert used == dict.fromkeys(range(dataset.num_tokens), 1)
        assert 0 < batch.sop_labels.sum() < len(batch.samples)


def test_one_document_has_no_other(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[30] * 50])
    assert epoch_of(open_made_up(dataset.prefix, sentence_objective="nsp")["train"]).sop_labels.sum() == 0


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.3])
def test_full_sentences_cut_nothing_and_cross_no_document(dataset: IndexedDataset, short_seq_prob: float) -> None:
    options = {"sentence_objective": "none", "full_sentences": True, "short_seq_prob": short_seq_prob}
    split = open_made_up(dataset.prefix, seq_length=64, **options)["train"]
    batch, owner = epoch_of(split), owners_of(dataset)
    runs = [sample[0] for sample in segments(batch)]
    used = np.sort(np.concatenate(runs))
    np.testing.assert_array_equal(used, np.arange(dataset.num_tokens), "every token once")
    ends = {0, *np.cumsum(dataset.sizes).tolist()}
    for run in runs:
        assert len(set(owner[run])) == 1
        assert {int(run[0]), int(run[-1]) + 1} <= ends, "whole sentences"
    if short_seq_prob == 0.0:  # as many as fit: the sentence that follows in the document would not
        sizes = dict(zip(np.cumsum([0, *dataset.sizes[:-1]]).tolist(), dataset.sizes.tolist(), strict=True))
        for run in runs:
            end = int(run[-1]) + 1
            if end < dataset.num_tokens and owner[end] == owner[run[0]]:
                assert len(run) + sizes[end] > 62
    else:
        assert np.mean(batch.lengths < 40) > np.mean(
            [
                n < 40
                for n in epoch_of(open_made_up(dataset.prefix, **(options | {"short_seq_prob": 0.0}))["train"]).lengths
            ]
        )


def test_full_sentences_slice_only_what_is_longer_than_a_sample(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[100, 10], [150]])
    options = {"sentence_objective": "none", "full_sentences": True, "short_seq_prob": 0.0}
    batch = epoch_of(open_made_up(dataset.prefix, seq_length=64, **options)["train"])
    assert sorted(batch.lengths.tolist()) == sorted(n + 2 for n in (62, 38 + 10, 62, 62, 26))


def test_tokens_are_masked_alone_where_asked(tmp_path: Path) -> None:
    lengths = [[30, 30]] * 200
    starts = np.tile(np.arange(30) % 5 == 0, 400)  # words of five tokens
    dataset = write_corpus(tmp_path / "a", lengths, starts)
    whole = epoch_of(open_made_up(dataset.prefix, max_ngrams=1, short_seq_prob=0.0)["train"])
    alone = epoch_of(open_made_up(dataset.prefix, max_ngrams=1, short_seq_prob=0.0, masking="token")["train"])

    def words(batch: Batch) -> Counter[int]:
        """Masked tokens of each word that has any."""
        rows = batch.masked_positions // 64
        return Counter(Counter(zip(rows.tolist(), ((batch.masked_labels - FIRST) // 5).tolist(), strict=True)).values())

    assert words(whole) == {5: 200}, "a budget of 9 of 63 tokens: one word"
    assert words(alone)[1] > 0.5 * words(alone).total() and words(alone)[5] < 5


def test_the_share_of_masks_is_linear_in_the_sample_and_constant_in_evaluations(dataset: IndexedDataset) -> None:
    options = {"mask_prob": 0.3, "mask_prob_end": 0.1, "mask_prob_samples": 800, "split": "50,50,0"}
    splits = open_made_up(dataset.prefix, **options)
    train = splits["train"].assemble(0, 1600)
    counts = np.bincount(train.masked_positions // 64, minlength=1600)
    share = 0.3 + (0.1 - 0.3) * (np.minimum(np.arange(1600), 800) / 800)
    budget = np.maximum(1, np.round(share * train.lengths))
    assert counts.tolist() == budget.tolist(), "tokens are words here, so the budget is filled"
    valid = splits["valid"].assemble(0, 200)
    constant = open_made_up(dataset.prefix, mask_prob=0.1, split="50,50,0")["valid"].assemble(0, 200)
    np.testing.assert_array_equal(valid.tokens, constant.tokens)
    # A pure function of the sample's number: a part in the middle is the same.
    part = splits["train"].assemble(700, 50)
    np.testing.assert_array_equal(part.tokens, train.tokens[700:750])
