"""Twenty thousand samples counted, and samples of any corpus at all."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed import IndexedDataset
from megatron.errors import UserError

from .made_up import CLS, FIRST, MASK, PAD, SEP, open_made_up, random_documents, restored, segments_of, write_corpus

SAMPLES = 20_000


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexedDataset, np.ndarray]:
    """A corpus of words of one to four tokens, and which token starts one."""
    rng = np.random.default_rng(4)
    documents = random_documents(rng, 900, sentences=16, tokens=40)
    total = sum(map(sum, documents))
    starts = np.zeros(total, dtype=bool)
    starts[np.cumsum(rng.integers(1, 5, total))[:-1].clip(max=total - 1)] = True
    starts[np.cumsum([0, *(n for document in documents for n in document)])[:-1]] = True
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents, starts), starts


def near(share: float, expected: float, count: int) -> bool:
    """Whether a share is what chance gives, within five standard deviations."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_twenty_thousand_samples(words: tuple[IndexedDataset, np.ndarray]) -> None:
    dataset, starts = words
    split = open_made_up(dataset.prefix, seq_length=128)["train"]
    batch = split.assemble(0, SAMPLES)
    inputs = batch.tokens.reshape(-1)[batch.masked_positions]
    masked = len(inputs)
    budgets = np.maximum(1, np.round(0.15 * batch.lengths))
    assert 0.97 < masked / budgets.sum() <= 1.0, "the budget, less the words that did not fit"
    assert 0.145 < masked / batch.lengths.sum() < 0.151
    kept, replaced = inputs == batch.masked_labels, inputs == MASK
    assert near(replaced.mean(), 0.8, masked) and near(kept.mean(), 0.1, masked)
    random = inputs[~kept & ~replaced]
    assert near(len(random) / masked, 0.1, masked) and random.min() >= FIRST, "never a special token"
    assert near(batch.sop_labels.mean(), 0.5, SAMPLES)
    assert abs(np.corrcoef(batch.sop_labels[:-1], batch.sop_labels[1:])[0, 1]) < 5 / np.sqrt(SAMPLES)
    # No word is cut in half: the token after a masked one either starts a word or is masked too.
    is_masked = np.zeros(batch.tokens.size, dtype=bool)
    is_masked[batch.masked_positions] = True
    full = restored(batch).reshape(-1)
    inside = (full[1:] >= FIRST) & ~starts[np.maximum(full[1:] - FIRST, 0)] & (full[:-1] >= FIRST)
    assert (is_masked[:-1] == is_masked[1:])[inside].all()


def test_lengths_of_ngrams(tmp_path: Path) -> None:
    """6/11, 3/11 and 2/11 of the n-grams have one, two and three words."""
    starts = np.arange(120_000) % 2 == 0  # words of two tokens
    dataset = write_corpus(tmp_path / "a", [[1000, 1000]] * 60, starts)
    # A budget of 12 tokens in 1021: the first n-gram always fits, and hardly ever touches another.
    split = open_made_up(dataset.prefix, seq_length=1024, mask_prob=0.0117, short_seq_prob=0.0)["train"]
    observed: Counter[int] = Counter()
    for first in range(0, SAMPLES, 1000):
        batch = split.assemble(first, 1000)
        breaks = np.flatnonzero(np.diff(batch.masked_positions, prepend=-9) != 1)
        spans = np.diff([*breaks, len(batch.masked_positions)]).tolist()
        observed.update(span // 2 for span in spans)
    rng = np.random.default_rng(0)
    draws = iter(rng.choice([1, 2, 3], p=[6 / 11, 3 / 11, 2 / 11], size=20 * SAMPLES).tolist())
    expected: Counter[int] = Counter()
    for _ in range(SAMPLES):
        left = 6
        while left:
            n = min(next(draws), left)
            expected[n] += 1
            left -= n
    for n in (1, 2, 3):
        assert abs(observed[n] / observed.total() - expected[n] / expected.total()) < 0.012


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.one_of(st.integers(0, 3), st.integers(0, 200)), max_size=8), min_size=1, max_size=30
    ),
    objective=st.sampled_from(["sop", "nsp", "none", "full"]),
    seq_length=st.integers(8, 64),
    short_seq_prob=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_any_corpus_gives_well_formed_samples(
    documents, objective, seq_length, short_seq_prob, seed, tmp_path_factory
) -> None:
    if not any(map(sum, documents)):
        return
    dataset = write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents)
    options = {"sentence_objective": "none", "full_sentences": True} if objective == "full" else {
        "sentence_objective": objective
    }  # fmt: skip
    try:
        split = open_made_up(
            dataset.prefix, seq_length=seq_length, short_seq_prob=short_seq_prob, seed=seed, **options
        )["train"]
    except UserError:
        assert objective in ("sop", "nsp"), "one segment can always be made"
        return
    count = 2 * split.samples_per_epoch[0]
    batch = split.assemble(0, count)
    owner = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    rows = restored(batch)
    masks = np.bincount(batch.masked_positions // seq_length, minlength=count)
    used: Counter[int] = Counter()
    for number, (row, length) in enumerate(zip(rows, batch.lengths, strict=True)):
        assert row[0] == CLS and row[length - 1] == SEP and (row[length:] == PAD).all() and masks[number] >= 1
        segments = [segment - FIRST for segment in segments_of(row, length)]
        assert len(segments) == (2 if objective in ("sop", "nsp") else 1)
        assert all(len(segment) and (np.diff(segment) == 1).all() for segment in segments)
        homes = [set(owner[segment].tolist()) for segment in segments]
        assert all(len(home) == 1 for home in homes)
        assert [list(home)[0] for home in homes][: len(split.documents_of(number))] == [
            document for _, document in split.documents_of(number)
        ]
        if objective in ("sop", "none", "full"):
            assert len(set.union(*homes)) == 1
        if number < count // 2:
            used.update(itertools.chain(*(segment.tolist() for segment in segments)))
    assert not used or max(used.values()) == 1, "nothing comes twice in an epoch"
    if objective == "full":
        assert used.total() == dataset.num_tokens, "and nothing is left out"


def test_ten_thousand_documents(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(5), 10_000, sentences=3, tokens=6))
    split = open_made_up(dataset.prefix)["train"]
    index = split.corpora[0].index
    assert index.documents == 10_000
    assert len(index.rows) == 10_000 - index.short_documents, "short documents: a sample each"
    seen = {split.documents_of(number)[0][1] for number in range(len(index.rows))}
    several = np.flatnonzero(np.diff(dataset.document_index) >= 2)
    assert seen == set(several.tolist())
