"""Assembly and masking of samples, and the order in which ranks and workers get them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data.batches import Batch, Split, evaluation_batches, step_batches, vocabulary_table
from megatron.data.indexed import IndexedDataset
from megatron.errors import UserError

from .made_up import (
    CLS,
    FIRST,
    MASK,
    PAD,
    SEP,
    SPECIALS,
    open_made_up,
    random_documents,
    restored,
    segments_of,
    vocabulary,
    write_corpus,
)  # fmt: skip

FIELDS = ("tokens", "token_types", "lengths", "masked_positions", "masked_labels", "sop_labels", "samples")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexedDataset, np.ndarray]:
    """A corpus with word marks, and these marks by token."""
    rng = np.random.default_rng(0)
    documents = random_documents(rng, 150, sentences=8, tokens=30) + [[200], [300, 2], [1, 1]]
    total = sum(map(sum, documents))
    starts = rng.random(total) < 0.6
    starts[np.cumsum([0, *(n for document in documents for n in document)])[:-1]] = True
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a_text_sentence", documents, starts), starts


@pytest.fixture(scope="module")
def train(corpus: tuple[IndexedDataset, np.ndarray]) -> Split:
    return open_made_up(corpus[0].prefix)["train"]


def assert_equal(a: Batch, b: Batch) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def join(batches: list[Batch]) -> Batch:
    width = batches[0].tokens.shape[1]
    offsets = np.cumsum([0, *(len(batch.samples) * width for batch in batches)])
    parts = {field: np.concatenate([getattr(batch, field) for batch in batches]) for field in FIELDS}
    parts["masked_positions"] = np.concatenate(
        [batch.masked_positions + offset for batch, offset in zip(batches, offsets, strict=False)]
    )
    return Batch(**parts)


@pytest.mark.parametrize("objective", ["sop", "none"])
def test_a_row_is_segments_of_one_document_between_special_tokens(corpus, objective: str) -> None:
    dataset, _ = corpus
    split = open_made_up(dataset.prefix, sentence_objective=objective)["train"]
    owner = np.repeat(np.arange(dataset.num_documents), np.diff(dataset.document_index))
    owner = np.repeat(owner, dataset.sizes)
    count = 2 * split.samples_per_epoch[0]
    batch = split.assemble(0, count)
    assert all(getattr(batch, field).dtype == np.int64 for field in FIELDS)
    assert batch.samples.tolist() == list(range(count))
    rows = restored(batch)
    for i in range(count):
        length = batch.lengths[i]
        row = rows[i]
        assert row[0] == CLS
        assert row[length - 1] == SEP
        assert (row[length:] == PAD).all()
        assert (batch.tokens[i, length:] == PAD).all()
        segments = segments_of(row, length)
        assert len(segments) == (2 if objective == "sop" else 1)
        first_end = len(segments[0]) + 2
        types = np.zeros(64, np.int64)
        types[first_end:length] = 1
        assert (batch.token_types[i] == types).all()
        for segment in segments:
            assert len(segment) >= 1
            assert (np.diff(segment) == 1).all(), "the tokens follow each other in the corpus"
        ids = np.concatenate(segments) - FIRST
        assert len(set(owner[ids])) == 1
        assert split.documents_of(i) == [(dataset.prefix, owner[ids[0]])]
        if objective == "sop":
            assert batch.sop_labels[i] == (segments[0][0] > segments[1][0])
        else:
            assert batch.sop_labels[i] == 0
    if objective == "sop":
        assert abs(batch.sop_labels.mean() - 0.5) < 2.5 / np.sqrt(count)


def test_truncation_takes_from_both_ends_of_the_longer_segment(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[40, 40]] * 300 + [[10, 60]] * 300)
    split = open_made_up(dataset.prefix, seq_length=64, short_seq_prob=0.0)["train"]
    batch = split.assemble(0, 600)
    fronts, total = 0, 0
    for row, length, sample in zip(restored(batch), batch.lengths, batch.samples, strict=True):
        assert length == 64
        segments = sorted(segments_of(row, length), key=lambda segment: int(segment[0]))
        (_, number) = split.documents_of(int(sample))[0]
        first = int(dataset.document_index[number])
        sentences = [dataset.sentence(first), dataset.sentence(first + 1)]
        assert sorted(map(len, segments)) == ([30, 31] if number < 300 else [10, 51])
        for segment, sentence in zip(segments, sentences, strict=True):
            assert segment[0] >= sentence[0]
            assert segment[-1] <= sentence[-1]
            fronts += int(segment[0]) - int(sentence[0])
            total += len(sentence) - len(segment)
    assert abs(fronts / total - 0.5) < 2.5 / np.sqrt(total)


def test_masks_are_whole_words_within_the_budget(corpus, train: Split) -> None:
    _, starts = corpus
    batch = train.assemble(0, 2000)
    rows = restored(batch)
    masked = np.zeros(rows.size, dtype=bool)
    masked[batch.masked_positions] = True
    masked = masked.reshape(rows.shape)
    assert (np.diff(batch.masked_positions) > 0).all()
    assert (batch.masked_labels >= FIRST).all(), "special tokens are never masked"
    for row, mask, length in zip(rows, masked, batch.lengths, strict=True):
        budget = max(1, round(0.15 * int(length)))
        words = []  # masked tokens and length of each word
        column = 1
        for segment in segments_of(row, length):
            begins = starts[segment - FIRST].copy()
            begins[0] = True
            edges = [*np.flatnonzero(begins), len(segment)]
            words += [(mask[column + a : column + b].sum(), b - a) for a, b in itertools.pairwise(edges)]
            column += len(segment) + 1
        assert all(count in (0, size) for count, size in words)
        count = mask.sum()
        assert count >= 1
        free = [size for masked_tokens, size in words if masked_tokens == 0]
        if count > budget:
            assert sum(masked_tokens > 0 for masked_tokens, _ in words) == 1, "more than the budget: only a lone word"
            assert min(size for _, size in words) > budget
        else:
            assert count == budget or all(size > budget - count for size in free)


def test_a_sample_of_one_long_word_is_masked_whole(tmp_path: Path) -> None:
    starts = np.zeros(40, dtype=bool)
    dataset = write_corpus(tmp_path / "a", [[12, 8], [20]], starts)
    batch = open_made_up(dataset.prefix, sentence_objective="none", short_seq_prob=0.0)["train"].assemble(0, 10)
    assert Counter(batch.masked_positions // 64) == dict.fromkeys(range(10), 20)
    batch = open_made_up(dataset.prefix, short_seq_prob=0.0)["train"].assemble(0, 10)
    assert Counter(batch.masked_positions // 64) == dict.fromkeys(range(10), 8), "the shortest word"


def test_single_token_words_fill_the_budget_exactly(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(3), 200))
    for mask_prob in (0.01, 0.15, 0.4, 1.0):
        split = open_made_up(dataset.prefix, mask_prob=mask_prob)["train"]
        batch = split.assemble(0, 500)
        counts = np.bincount(batch.masked_positions // 64, minlength=500)
        expected = [max(1, min(round(mask_prob * int(length)), int(length) - 3)) for length in batch.lengths]
        assert counts.tolist() == expected, "every token is a word, so the budget is filled exactly"


def test_masked_tokens_are_replaced_8_to_1_to_1(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(3), 300))
    split = open_made_up(dataset.prefix, mask_prob=0.3)["train"]
    batch = split.assemble(0, 8000)
    inputs = batch.tokens.reshape(-1)[batch.masked_positions]
    n = len(inputs)
    assert n > 50_000
    masked, kept = inputs == MASK, inputs == batch.masked_labels
    for share, expected in ((masked.mean(), 0.8), (kept.mean(), 0.1), ((~masked & ~kept).mean(), 0.1)):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)
    replaced = inputs[~masked & ~kept]
    assert replaced.min() >= FIRST
    assert len(np.unique(replaced)) > 0.6 * min(len(replaced), split.corpora[0].dataset.num_tokens)
    untouched = np.ones(batch.tokens.size, dtype=bool)
    untouched[batch.masked_positions] = False
    assert (batch.tokens.reshape(-1) == restored(batch).reshape(-1))[untouched].all()


def test_random_tokens_come_from_those_allowed(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", random_documents(np.random.default_rng(3), 100))
    words = vocabulary(dataset.num_tokens + FIRST)
    object.__setattr__(words, "random_ids", np.array([7, 11], dtype=np.int32))
    batch = open_made_up(dataset.prefix, tokenizer=words)["train"].assemble(0, 1000)
    inputs = batch.tokens.reshape(-1)[batch.masked_positions]
    assert set(inputs[(inputs != MASK) & (inputs != batch.masked_labels)].tolist()) == {7, 11}


@pytest.mark.parametrize("max_ngrams", [1, 3, 4])
def test_spans_are_as_frequent_as_one_over_their_length(tmp_path: Path, max_ngrams: int) -> None:
    # Long samples and few masks: two spans hardly ever touch, so runs of masked tokens are the n-grams drawn.
    dataset = write_corpus(tmp_path / "a", [[1000, 1000]] * 60)
    split = open_made_up(dataset.prefix, seq_length=1024, mask_prob=0.012, max_ngrams=max_ngrams, short_seq_prob=0.0)[
        "train"
    ]
    observed: Counter[int] = Counter()
    samples = 6000
    for first in range(0, samples, 500):
        batch = split.assemble(first, 500)
        breaks = np.flatnonzero(np.diff(batch.masked_positions, prepend=-9) != 1)
        observed.update(np.diff([*breaks, len(batch.masked_positions)]).tolist())
    # The rule on its own: draw n, never more than what is left of the budget.
    rng = np.random.default_rng(0)
    lengths = np.arange(1, max_ngrams + 1)
    draws = rng.choice(lengths, p=1 / lengths / (1 / lengths).sum(), size=20 * samples).tolist()
    expected: Counter[int] = Counter()
    for _ in range(samples):
        left = round(0.012 * 1024)
        while left:
            n = min(draws.pop(), left)
            expected[n] += 1
            left -= n
    for n in lengths.tolist():
        assert abs(observed[n] / observed.total() - expected[n] / expected.total()) < 0.02
    assert sum(observed[n] for n in lengths.tolist()) > 0.97 * observed.total()


def test_each_epoch_has_every_sample_once_in_another_order_with_other_masks(train: Split) -> None:
    (n,) = train.samples_per_epoch
    orders = [[train.assembler.locate(epoch * n + i)[1][0] for i in range(n)] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(n))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sum(a == b for a, b in zip(orders[0], orders[1], strict=True)) < 0.05 * n + 5
    same_row = train.assemble(orders[0].index(0), 1), train.assemble(n + orders[1].index(0), 1)
    masks = [(batch.masked_positions.tolist(), batch.tokens.tolist()) for batch in same_row]
    assert masks[0] != masks[1]
    assert train.epochs(3 * n) == (3.0,)


def test_the_seed_decides_order_and_masks(corpus) -> None:
    prefix = corpus[0].prefix
    first, again, other = (open_made_up(prefix, seed=seed)["train"].assemble(0, 50) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert not np.array_equal(first.tokens, other.tokens)


def test_a_batch_does_not_depend_on_how_it_is_cut(train: Split) -> None:
    whole = train.assemble(100, 60)
    assert_equal(whole, join([train.assemble(first, 1) for first in range(100, 160)]))
    assert_equal(whole, join([train.assemble(first, 15) for first in range(100, 160, 15)]))


def test_threads_and_order_do_not_matter(corpus) -> None:
    prefix = corpus[0].prefix
    expected = [open_made_up(prefix)["train"].assemble(first, 8) for first in range(0, 400, 8)]
    split = open_made_up(prefix)["train"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda first: split.assemble(first, 8), reversed(range(0, 400, 8))))
    for a, b in zip(expected, reversed(results), strict=True):
        assert_equal(a, b)


def blend_of_two(tmp_path: Path, **changes: Any) -> dict[str, Split]:
    one = write_corpus(tmp_path / "one", [[10, 10]] * 60)
    two = write_corpus(tmp_path / "two", [[10, 10, 10]] * 40)
    words = vocabulary(FIRST + 1200)
    return open_made_up("", data_path=("1", one.prefix, "3", two.prefix), tokenizer=words, **changes)


def test_blends_take_from_each_corpus_by_weight(tmp_path: Path) -> None:
    split = blend_of_two(tmp_path)["train"]
    assert split.weights == (0.25, 0.75)
    prefixes = [split.documents_of(sample)[0][0] for sample in range(400)]
    assert Counter(prefixes) == {str(tmp_path / "one"): 100, str(tmp_path / "two"): 300}
    assert split.epochs(400) == pytest.approx((100 / split.samples_per_epoch[0], 300 / split.samples_per_epoch[1]))
    assert_equal(split.assemble(0, 40), join([split.assemble(first, 10) for first in range(0, 40, 10)]))
    lines = split.describe()
    assert len(lines) == 2
    assert "60 documents" in lines[0]
    assert "weight 0.75" in lines[1]


def test_splits_exist_where_they_have_a_share(corpus) -> None:
    prefix = corpus[0].prefix
    splits = open_made_up(prefix, split="80,0,20")
    assert list(splits) == ["train", "test"]
    documents = {
        name: {split.documents_of(i)[0][1] for i in range(sum(split.samples_per_epoch))}
        for name, split in splits.items()
    }
    assert not documents["train"] & documents["test"]


def test_skipped_documents_are_counted(corpus) -> None:
    dataset, _ = corpus
    single = sum(n == 1 for n in np.diff(dataset.document_index)[:150])
    split = open_made_up(dataset.prefix)["train"]
    assert split.corpora[0].index.short_documents == single > 0
    assert f"{single} of them skipped" in split.describe()[0]


def ramp(consumed: int) -> int:
    return 8 if consumed < 24 else 20


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_ranks_and_micro_batches_together_are_the_global_batch(train: Split, num_workers: int) -> None:
    for size, micro in ((1, 4), (2, 2), (2, 3), (4, 1)):
        ranks = [
            step_batches(
                train, global_batch_size=ramp, consumed=0, micro_batch_size=micro, rank=rank, size=size,
                num_workers=num_workers,
            )
            for rank in range(size)
        ]  # fmt: skip
        consumed = 0
        for _ in range(6):
            parts = [batch for rank in ranks for batch in next(rank)]
            assert all(len(batch.samples) <= micro for batch in parts)
            assert_equal(join(parts), train.assemble(consumed, ramp(consumed)))
            consumed += ramp(consumed)
        for rank in ranks:
            rank.close()  # type: ignore[attr-defined]


def test_a_run_resumes_where_it_stopped(train: Split) -> None:
    def batches(consumed: int) -> Any:
        return step_batches(
            train, global_batch_size=ramp, consumed=consumed, micro_batch_size=4, rank=0, size=1, num_workers=2
        )

    whole = [join(next_batches) for next_batches in itertools.islice(batches(0), 6)]
    resumed = [join(next_batches) for next_batches in itertools.islice(batches(24), 3)]
    for a, b in zip(whole[3:], resumed, strict=True):
        assert_equal(a, b)


def test_a_failing_loader_raises_in_the_consumer(train: Split) -> None:
    class Failing:
        def assemble(self, first: int, count: int) -> Batch:
            if first >= 16:
                raise UserError("the disk is gone")
            return train.assemble(first, count)

    batches = step_batches(
        Failing(),  # type: ignore[arg-type]
        global_batch_size=lambda consumed: 8,
        consumed=0,
        micro_batch_size=4,
        rank=0,
        size=1,
        num_workers=2,
    )
    assert_equal(join(next(batches)), train.assemble(0, 8))
    next(batches)
    with pytest.raises(UserError, match="the disk is gone"):
        next(batches)


def test_closing_ends_the_workers(train: Split) -> None:
    def workers() -> int:
        return sum(thread.name.startswith("batches") for thread in threading.enumerate())

    before = workers()
    batches = step_batches(
        train, global_batch_size=lambda consumed: 8, consumed=0, micro_batch_size=4, rank=0, size=1, num_workers=3
    )
    next(batches)
    assert workers() > before
    batches.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if workers() == before:
            break
        time.sleep(0.02)
    assert workers() == before


def test_evaluation_sees_the_same_samples_on_any_number_of_ranks(train: Split) -> None:
    expected = train.assemble(0, 22)
    for size, micro in ((1, 22), (1, 4), (2, 4), (3, 5)):
        for _ in range(2):
            parts = [
                batch
                for rank in range(size)
                for batch in evaluation_batches(train, samples=22, micro_batch_size=micro, rank=rank, size=size)
            ]
            assert_equal(join(parts), expected)
    nothing = evaluation_batches(train, samples=1, micro_batch_size=4, rank=0, size=2)
    assert list(nothing) == []


def test_marked_chinese_characters_become_plain_ones(tmp_path: Path) -> None:
    tokens = ["汉", "字", "##汉", "##字", "##ing", "##X", "X", "##语"]
    words = vocabulary(FIRST + len(tokens), tokens)
    table = vocabulary_table(words)
    number = {token: i for i, token in enumerate(words.tokens)}
    plain = table & 0x7FFFFFFF
    assert plain[number["##汉"]] == number["汉"]
    assert plain[number["##字"]] == number["字"]
    unchanged = [t for t in (*SPECIALS, *tokens) if t not in ("##汉", "##字")]
    assert [plain[number[t]] for t in unchanged] == [number[t] for t in unchanged]
    assert [t for t in tokens if table[number[t]] >= 0] == ["##汉", "##字", "##ing", "##X", "##语"]

    dataset = write_corpus(tmp_path / "a", [[4, 4], [4, 4]])
    ids = np.array([number[t] for t in ("汉", "##字", "X", "##ing")] * 4)
    (tmp_path / "a.bin").write_bytes(ids.astype(dataset.dtype).tobytes())
    batch = open_made_up(dataset.prefix, tokenizer=words, short_seq_prob=0.0)["train"].assemble(0, 40)
    sentence = [number["汉"], number["字"], number["X"], number["##ing"]]
    assert (restored(batch)[:, :11] == [CLS, *sentence, SEP, *sentence, SEP]).all()
    # A budget of 2 of 11 tokens: exactly one of the two-token words.
    assert {tuple(pair) for pair in (batch.masked_positions.reshape(40, 2) % 64).tolist()} == {
        (1, 2), (3, 4), (6, 7), (8, 9),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<u2", "<i4", "<i8"])
def test_every_token_type_gives_the_same_batch(tmp_path: Path, dtype: str) -> None:
    code = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}[dtype]
    dataset = write_corpus(tmp_path / "a", [[5, 6]] * 8)
    batches = [open_made_up(dataset.prefix)["train"].assemble(0, 16)]
    scale = np.dtype(dtype).itemsize / 2
    index = bytearray((tmp_path / "a.idx").read_bytes())
    index[17] = code
    begin = 34 + 4 * 16
    index[begin : begin + 8 * 16] = (np.array(dataset.pointers) * scale).astype("<i8").tobytes()
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "a.bin").write_bytes(np.array(dataset.tokens).astype(dtype).tobytes())
    batches.append(open_made_up(dataset.prefix)["train"].assemble(0, 16))
    assert_equal(*batches)


def test_a_wrong_vocabulary_is_refused(corpus) -> None:
    dataset, _ = corpus
    largest = dataset.num_tokens + FIRST - 1
    for _ in range(2):  # built, then from the cache
        with pytest.raises(UserError, match=f"token id {largest}, but the vocabulary has {largest} tokens"):
            open_made_up(dataset.prefix, vocab_size=largest)


def test_the_data_card_is_compared(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[5, 6]] * 8)
    (tmp_path / "a.json").write_text('{"vocabulary_hash": "other"}')
    with pytest.raises(UserError, match="another vocabulary"):
        open_made_up(dataset.prefix)


def test_ids_that_appear_later_are_refused_too(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "a", [[5, 6]] * 8)
    split = open_made_up(dataset.prefix)["train"]
    with (tmp_path / "a.bin").open("r+b") as file:
        file.write(b"\xff" * (2 * dataset.num_tokens))
    with pytest.raises(UserError, match=r"a changed while in use or is damaged: a token id is not in the vocabulary"):
        split.assemble(0, 4)


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    good = write_corpus(tmp_path / "good", [[5, 6]] * 40)
    single = write_corpus(tmp_path / "single", [[5]] * 40)
    words = vocabulary(FIRST + 40 * 11)
    for changes, reason in (
        ({"data_path": (str(tmp_path / "missing"),)}, r"missing\.idx does not exist"),
        ({"data_path": (single.prefix,)}, r"none of the 40 documents .*--bert-no-binary-head"),
        ({"data_path": ("1", good.prefix, "1", single.prefix)}, r"single: none of the 40 documents"),
        ({"data_path": ("x", good.prefix)}, "weight is expected"),
        ({"split": "0,0"}, "--split"),
        ({"seq_length": 4}, "--seq-length"),
    ):
        with pytest.raises(UserError, match=reason):
            open_made_up(good.prefix, tokenizer=words, **changes)
    assert open_made_up(single.prefix, tokenizer=words, sentence_objective="none")["train"].samples_per_epoch == (40,)


def test_a_split_without_usable_documents_is_refused(tmp_path: Path) -> None:
    mixed = write_corpus(tmp_path / "a", [[5, 6]] + [[5]] * 30)
    with pytest.raises(UserError, match=r"of the (train|valid|test) split"):
        open_made_up(mixed.prefix, split="60,20,20")
    two = write_corpus(tmp_path / "b", [[5, 6]] * 2)
    with pytest.raises(UserError, match="2 documents, too few for the 3 splits"):
        open_made_up(two.prefix, split="969,30,1")
