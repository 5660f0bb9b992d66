"""Documents to ids: C++ gives what the Python that defines it gives."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.encode import Column, Counts, document_encoder, encode_documents
from megatron.data.segmenter import Segmenter, load_segmenter
from megatron.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer

WORDS = (
    "the un ##aff ##able ##ing 20 ##23 é ß ab ##c カ ##タ 我 们 在 动 物 园 。 ， , . ! [ ] # ##我 １ ##２ ａ".split()
)
DOCUMENT = st.lists(
    st.sampled_from(
        ["我们在动物园。", "云计算平台", "unaffable ", "2023年", "[MASK]", "１２ａ", "é", "がカ", "𠀀", "😀"]
    )
    | st.sampled_from("\x00\n \x1c")
    | st.text(max_size=4),
    max_size=14,
).map("".join)


@pytest.fixture(scope="module", params=["BertWordPieceCase", "BertWordPieceLowerCase"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]), encoding="utf-8")
    return load_tokenizer(request.param, path)


@pytest.fixture(scope="module", params=["none", "jieba"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter | None:
    return load_segmenter(request.param)


def assert_equal(actual: Column, expected: Column) -> None:
    for name in ("tokens", "lengths", "documents", "word_starts"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert asdict(actual.counts) == asdict(expected.counts)


@pytest.fixture(scope="module")
def encoders(tokenizer: Tokenizer, segmenter: Segmenter | None) -> list[Callable[[Sequence[str]], Column]]:
    """Without and with a split into sentences."""
    return [document_encoder(tokenizer, segmenter, split=split) for split in (False, True)]


@given(documents=st.lists(DOCUMENT, max_size=5), split=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_documents(
    tokenizer: Tokenizer,
    segmenter: Segmenter | None,
    encoders: list[Callable[[Sequence[str]], Column]],
    documents: list[str],
    split: bool,
) -> None:
    assert_equal(encoders[split](documents), encode_documents(documents, tokenizer, segmenter, split=split))


def real_documents(shared_data: Path) -> list[str]:
    documents = []
    for path in sorted((shared_data / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents += [json.loads(next(lines))["text"][:2000] for _ in range(10)]
    return documents


@pytest.mark.parametrize("split", [True, False])
def test_real_documents(shared_data: Path, tmp_path: Path, segmenter: Segmenter | None, split: bool) -> None:
    documents = real_documents(shared_data)
    characters = sorted({c for text in documents for c in text.lower() if c.isprintable()} - {" "})
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *characters[::2], *(f"##{c}" for c in characters), "the", "##er"])
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    for kind in ("BertWordPieceCase", "BertWordPieceLowerCase"):
        tokenizer = load_tokenizer(kind, tmp_path / "vocab.txt")
        actual = document_encoder(tokenizer, segmenter, split=split)(documents)
        assert_equal(actual, encode_documents(documents, tokenizer, segmenter, split=split))
        assert actual.counts.unknown_tokens > 0


def test_no_documents(tokenizer: Tokenizer, segmenter: Segmenter | None) -> None:
    encode = document_encoder(tokenizer, segmenter, split=True)
    assert encode([]).counts == Counts()
    empty = encode(["", "\x00 \n"])
    assert (len(empty.tokens), empty.counts.empty_documents, empty.counts.characters) == (0, 2, 3)


def test_threads_share_an_encoder(tokenizer: Tokenizer, segmenter: Segmenter | None) -> None:
    """Words new to all of them are asked of the library while the others wait."""
    encode = document_encoder(tokenizer, segmenter, split=True)
    documents = [f"éß{i}我们在动物园。" for i in range(300)]
    expected = encode_documents(documents, tokenizer, segmenter, split=True)
    results: list[Column] = []
    threads = [threading.Thread(target=lambda: results.append(encode(documents))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_equal(result, expected)
