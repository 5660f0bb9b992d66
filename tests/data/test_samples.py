"""The keyed permutation, the splits, the sample index and its cache."""

from __future__ import annotations

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed import IndexedDataset
from megatron.data.sample_cache import SampleIndex, first_sentences
from megatron.data.samples import SampleRule, open_sample_index, split_ranges
from megatron.errors import UserError
from megatron.native import _C
from tests.commands import run

from .made_up import FIRST, random_documents, write_corpus


def rule(
    seq_length: int = 32, binary_head: bool = True, short_seq_prob: float = 0.1, seed: int = 1, full: bool = False
) -> SampleRule:
    return SampleRule(
        seq_length=seq_length, binary_head=binary_head, short_seq_prob=short_seq_prob, seed=seed, full_sentences=full
    )


def whole(dataset: IndexedDataset, rule: SampleRule, cache: Path | None = None) -> SampleIndex:
    """The index of a split that has every document."""
    return open_sample_index(
        dataset, "train", (0, dataset.num_documents), rule, cache and str(cache), wait_seconds=60.0
    )


def targets_of(dataset: IndexedDataset, index: SampleIndex, rule: SampleRule) -> np.ndarray:
    """The tokens that each sample of the training split aims at."""
    target = rule.targets(dataset, "train")
    return np.array([target(s, int(o)) for s, o in zip(first_sentences(index.rows), index.rows["offset"], strict=True)])


def pieces_of(dataset: IndexedDataset, index: SampleIndex, rule: SampleRule) -> list[list[np.ndarray]]:
    """The tokens of each piece of each sample, by the definition of a piece."""
    samples = []
    for row, sentence in zip(index.rows, first_sentences(index.rows).tolist(), strict=True):
        offset, pieces = int(row["offset"]), []
        while len(pieces) < row["pieces"]:
            tokens = dataset.sentence(sentence)
            step = len(tokens) if len(tokens) <= rule.longest else rule.slice
            while offset < len(tokens) and len(pieces) < row["pieces"]:
                pieces.append(tokens[offset : offset + step])
                offset += step
            sentence, offset = sentence + 1, 0
        samples.append(pieces)
    return samples


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_the_permutation_is_a_bijection_for_any_n(n, key) -> None:
    assert np.array_equal(np.sort(_C.permute(n, key, np.arange(n))), np.arange(n))


@pytest.mark.parametrize("n", [2**31 + 11, 2**40, 2**62 - 1])
def test_the_permutation_works_for_large_n(n: int) -> None:
    images = _C.permute(n, 7, np.arange(20_000))
    assert len(np.unique(images)) == 20_000
    assert 0 <= images.min() < n * 0.01
    assert n * 0.99 < images.max() < n


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_are_equally_likely(n: int) -> None:
    keys, orders = 24_000, math.factorial(n)
    counts = Counter(tuple(_C.permute(n, key, np.arange(n)).tolist()) for key in range(keys))
    assert len(counts) == orders
    chi_square = sum((count - keys / orders) ** 2 / (keys / orders) for count in counts.values())
    freedom = orders - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_the_permutation_leaves_no_order() -> None:
    images = _C.permute(100_000, 3, np.arange(100_000))
    assert abs(np.corrcoef(images, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    assert (_C.permute(100_000, 4, np.arange(100_000)) == images).mean() < 0.001


@settings(max_examples=200, deadline=None)
@given(
    shares=st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(lambda shares: sum(shares) > 0),
    documents=st.integers(3, 5000),
)
def test_splits_cover_all_documents_once(shares, documents) -> None:
    ranges = split_ranges(",".join(map(str, shares)), documents, "corpus")
    names = [name for name, share in zip(("train", "valid", "test"), shares, strict=False) if share]
    assert list(ranges) == names
    ends = [0, *(last for _, last in ranges.values())]
    assert [first for first, _ in ranges.values()] == ends[:-1]
    assert ends[-1] == documents
    for name, share in zip(names, [share for share in shares if share], strict=True):
        first, last = ranges[name]
        assert last - first >= 1
        assert abs(last - first - documents * share / sum(shares)) <= len(names)


def test_default_split_of_a_small_corpus_keeps_a_document_for_each_split() -> None:
    assert split_ranges("969, 30, 1", 100, "corpus") == {"train": (0, 96), "valid": (96, 99), "test": (99, 100)}


def test_a_corpus_too_small_for_the_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"corpus has 2 documents, too few for the 3 splits of --split 969,30,1"):
        split_ranges("969,30,1", 2, "corpus")


@pytest.mark.parametrize("split", ["", "a,b", "0,0,0", "-1,2", "1,2,3,4", "1,,2", "1/0,1", "nan"])
def test_a_bad_split_is_refused(split: str) -> None:
    with pytest.raises(UserError, match="--split"):
        split_ranges(split, 100, "corpus")


@pytest.mark.parametrize("binary_head", [True, False])
@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 120), max_size=8), min_size=1, max_size=10),
    seq_length=st.integers(8, 40),
    short_seq_prob=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_every_token_of_usable_documents_is_in_one_sample(
    binary_head, documents, seq_length, short_seq_prob, tmp_path_factory
) -> None:
    if not any(map(sum, documents)):
        return
    dataset = write_corpus(tmp_path_factory.mktemp("corpus") / "a", documents)
    how = rule(seq_length, binary_head, short_seq_prob)
    usable = []
    for number in range(len(documents)):
        first, last = dataset.document_index[number : number + 2].tolist()
        sentences = [dataset.sentence(sentence) for sentence in range(first, last)]
        pieces = sum(1 if 0 < len(s) <= how.longest else -(-len(s) // how.slice) for s in sentences)
        if pieces >= how.min_pieces:
            usable.append(np.concatenate(sentences))
    try:
        index = whole(dataset, how)
    except UserError:
        assert not usable
        return
    samples = pieces_of(dataset, index, how)
    tokens = np.concatenate([piece for sample in samples for piece in sample])
    np.testing.assert_array_equal(tokens, np.concatenate(usable))
    assert (index.documents, index.short_documents) == (len(documents), len(documents) - len(usable))
    owner = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    for sample, target in zip(samples, targets_of(dataset, index, how), strict=True):
        assert len(sample) >= how.min_pieces
        assert all(0 < len(piece) <= how.longest for piece in sample)
        assert min(8, how.longest) <= target <= how.longest
        ids = np.concatenate(sample).astype(np.int64) - FIRST
        assert len(set(owner[ids])) == 1, "a sample stays inside its document"
        # Past its target a sample only takes what is too little for a sample of its own.
        tokens_up_to = np.cumsum([len(piece) for piece in sample])
        enough = np.flatnonzero((tokens_up_to >= target) & (np.arange(1, len(sample) + 1) >= how.min_pieces))
        assert enough.size == 0 or len(sample) - (enough[0] + 1) < how.min_pieces


def test_sentences_longer_than_a_sample_are_split_and_fill_it(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[1000]])
    for how in (rule(64, short_seq_prob=0.0), rule(64, binary_head=False, short_seq_prob=0.0)):
        samples = pieces_of(dataset, whole(dataset, how), how)
        assert sum(len(piece) for sample in samples for piece in sample) == 1000
        lost = sum(max(0, sum(map(len, sample)) - how.longest) for sample in samples)
        assert lost <= 1000 * 0.05


def test_short_targets_are_as_frequent_as_asked_and_of_every_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = write_corpus(tmp_path / "a", random_documents(rng, 9000, sentences=6, tokens=20))
    how = rule(40, short_seq_prob=0.3)
    targets = targets_of(dataset, whole(dataset, how), how)
    # Samples that end with their document say nothing against it: targets are drawn before.
    lengths = np.arange(8, how.longest + 1)
    observed = np.array([(targets == length).mean() for length in lengths])
    expected = np.full(len(lengths), 0.3 / len(lengths))
    expected[-1] += 0.7
    bound = 5 * np.sqrt(expected * (1 - expected) / len(targets))
    # Short targets take less text, so of a document more of them are drawn; the bound allows for that.
    assert (abs(observed - expected) < bound + 0.15 * expected).all()
    assert abs((targets[targets < how.longest] % 2).mean() - 0.5) < 0.05, "odd lengths as well as even ones"


def test_without_short_targets_all_are_full(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 200))
    how = rule(short_seq_prob=0.0)
    assert set(targets_of(dataset, whole(dataset, how), how).tolist()) == {29}


def test_splits_share_no_document_and_do_not_follow_the_seed(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 200)
    members: dict[int, list[set[int]]] = {}
    for seed in (1, 2):
        members[seed] = []
        for name, split_range in split_ranges("80,10,10", 200, "a").items():
            index = open_sample_index(dataset, name, split_range, rule(seed=seed), None, wait_seconds=60.0)
            members[seed].append(set((first_sentences(index.rows) // 2).tolist()))
    assert members[1] == members[2]
    train, valid, test = members[1]
    assert (len(train), len(valid), len(test)) == (160, 20, 20)
    assert train | valid | test == set(range(200))
    # A fair sample of the corpus, not its tail.
    assert min(valid) < 60
    assert max(valid) > 140


def test_the_index_is_a_function_of_contents_and_rule_alone(tmp_path: Path) -> None:
    documents = random_documents(np.random.default_rng(0), 100)
    first = write_corpus(tmp_path / "a" / "one", documents)
    second = write_corpus(tmp_path / "b" / "two", documents)
    np.testing.assert_array_equal(whole(first, rule()).rows, whole(second, rule()).rows)
    assert not np.array_equal(whole(first, rule()).rows, whole(first, rule(seed=2)).rows)


def test_no_usable_document_names_the_remedy(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[5]] * 30)
    with pytest.raises(UserError, match=r"none of the 30 documents of the train split.*--bert-no-binary-head"):
        whole(dataset, rule())
    assert len(whole(dataset, rule(binary_head=False)).rows) == 30


def test_the_cache_is_used_again(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 100))
    index = whole(dataset, rule())
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat()
    np.testing.assert_array_equal(whole(dataset, rule()).rows, index.rows)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_each_thing_that_matters_has_its_own_cache_file(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    documents = random_documents(np.random.default_rng(0), 100)
    dataset = write_corpus(tmp_path / "a", documents)
    whole(dataset, rule(), cache)
    for number, changed in enumerate(
        (rule(seq_length=48), rule(binary_head=False), rule(short_seq_prob=0.2), rule(seed=5)), start=2
    ):
        whole(dataset, changed, cache)
        assert len(list(cache.iterdir())) == number
    open_sample_index(dataset, "train", (0, 90), rule(), str(cache), wait_seconds=60.0)
    assert len(list(cache.iterdir())) == 6
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    whole(dataset, rule(), cache)
    assert len(list(cache.iterdir())) == 7


def test_a_new_corpus_under_an_old_name_gets_a_new_index(tmp_path: Path) -> None:
    whole(write_corpus(tmp_path / "a", [[10, 10]] * 50), rule())
    dataset = write_corpus(tmp_path / "a", [[10, 10]] * 70)
    assert len(whole(dataset, rule()).rows) == 70


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 40))
    expected = np.array(whole(dataset, rule()).rows)
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    damages = [b"", good[:20], good[:-1], good + b"\x00", bytes(len(good))]
    for position in [*range(48), len(good) // 2, len(good) - 1]:
        damages.append(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
    for damaged in damages:
        file.write_bytes(damaged)
        index = whole(dataset, rule())
        np.testing.assert_array_equal(index.rows, expected)
        assert index.largest_token == dataset.largest_token
        assert file.read_bytes() == good


def test_many_at_once_make_one_whole_cache_file(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 400))
    with ThreadPoolExecutor(8) as pool:
        indices = list(pool.map(lambda _: whole(IndexedDataset(dataset.prefix), rule()), range(32)))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for index in indices:
        np.testing.assert_array_equal(index.rows, indices[0].rows)


def test_where_no_cache_can_be_written_the_index_stays_in_memory(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(0), 40))
    expected = whole(dataset, rule(), tmp_path / "elsewhere").rows
    (tmp_path / "cache").write_text("no folder")
    np.testing.assert_array_equal(whole(dataset, rule()).rows, expected)
    with pytest.raises(UserError, match="--data-cache-path .* cannot be written"):
        whole(dataset, rule(), tmp_path / "cache")


def test_missing_compiled_helpers_name_the_remedy() -> None:
    code = "import sys; sys.modules['megatron._C'] = None; import megatron.data.samples"
    result = run("-c", code)
    assert result.returncode != 0
    assert "UserError: the compiled helpers megatron._C cannot be imported" in result.stderr
    assert "make install" in result.stderr
