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

from megatron.data.corpus import Block, parse_block
from megatron.data.encode import Column, Counts, compiled_encoder, encode_documents, make_encoder, to_column
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


def document_encoder(
    tokenizer: Tokenizer, segmenter: Segmenter | None, *, split: bool
) -> Callable[[Sequence[str]], Column]:
    encoder = compiled_encoder(tokenizer, segmenter, split=split)
    assert encoder is not None
    return lambda documents: to_column(encoder.encode(documents))


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


JSON_LINES = [
    '{"text": "我们在动物园。", "n": 1}',
    ' {"n": [1, {"a": [-0.5e+3, 10E2, true, false, null, "]"]}], "text":"a\\n\\"b\\\\\\u6211\\ud83d\\ude00\\/"} \r',
    '{"text": "first", "text": "é𠀀last"}',
    '{"te\\u0078t": "escaped key"}',
    '{"text": ""}',
    "  ",
    "",
]
ODD_LINES = [
    *('{"text": "a"', '{"text": "a"} x', '{"text": "a",}', '{"text" "a"}', "{'text': 'a'}", "[1]", "{}", '{"x": "a"}'),
    *('{"text": 1}', '{"text": "\\ud800"}', '{"text": "\\udc00\\ud800"}', '{"text": "\\x"}', '{"text": "\\u12g4"}'),
    *('{"text": "a\x00"}', '{"text": "a\tb"}', '{"text": "a", "n": NaN}', '{"text": "a", "n": 01}', "\u3000"),
    *('{"text": "a", "n": 1.}', '{"text": "a", "n": -}', '{"text": "a", "n": 1e}', '{"text": "a", "n": tru}', "\x0c"),
    '{"text": "a", "n": ' + "[" * 5000 + "]" * 5000 + "}",
    '{"text": "a", "n": ' + "1" * 5000 + "}",
    '{"text": null, "text": "a"}',
]
ODD_BYTES = [
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xe4\xb8",
    b"\xf4\x90\x80\x80",
    b"\xf0\x80\x80\xaf",
    b"\xe0\x80\xaf",
    b"\x80",
]


@pytest.fixture(scope="module")
def encode_block(tokenizer: Tokenizer) -> Callable[[list[bytes], str], object]:
    """A block to (tokens, counts, bad lines), parsed in C++ or, with a line that is left to Python, in Python."""
    encoder = make_encoder(tokenizer, None, split=True, keys=("text",))

    def run(lines: list[bytes], path: str = "a.jsonl") -> object:
        block = Block(path=path, first_line=2, lines=tuple(lines), bytes_read=0)
        columns, bad = encoder.lines(block), []
        if columns is None:
            documents, bad = parse_block(block, ("text",))
            columns = [encoder.texts([text for (text,) in documents])]
        return columns[0].tokens.tolist(), asdict(columns[0].counts), [line.line for line in bad]

    return run


def test_lines_are_read_as_python_reads_them(
    encode_block: Callable[[list[bytes], str], object], tokenizer: Tokenizer
) -> None:
    compiled = compiled_encoder(tokenizer, None, split=True)
    assert compiled is not None
    usual = [line.encode() for line in JSON_LINES]
    assert compiled.encode_lines(usual, ["text"]) is not None
    documents = [json.loads(line)["text"] for line in JSON_LINES if line.strip()]
    expected = encode_documents(documents, tokenizer, None, split=True)
    assert encode_block(usual, "a.jsonl") == (expected.tokens.tolist(), asdict(expected.counts), [])
    odd = [line.encode() for line in ODD_LINES] + [b'{"text": "' + some + b'"}' for some in ODD_BYTES]
    for line in odd:
        assert compiled.encode_lines([*usual, line], ["text"]) is None, line
    assert compiled.encode_lines([None], ["text"]) is None
    # A block with such a line: the others are not lost, and it is named.
    tokens, _, bad = encode_block([usual[0], odd[0], usual[2]], "a.jsonl")
    assert bad == [3]
    assert len(tokens) > 7


@given(st.binary(max_size=30) | st.text(max_size=10).map(lambda text: json.dumps({"text": text}).encode()))
@settings(max_examples=500, deadline=None)
def test_whatever_is_read_is_what_python_reads(tokenizer: Tokenizer, line: bytes) -> None:
    compiled = compiled_encoder(tokenizer, None, split=False)
    assert compiled is not None
    for candidate in (line, b'{"text": "' + line + b'"}'):
        encoded = compiled.encode_lines([candidate], ["text"])
        if encoded is not None and candidate.strip():
            expected = encode_documents([json.loads(candidate)["text"]], tokenizer, None, split=False)
            assert_equal(to_column(encoded[0]), expected)


def test_several_keys(tokenizer: Tokenizer) -> None:
    compiled = compiled_encoder(tokenizer, None, split=False)
    assert compiled is not None
    encoded = compiled.encode_lines(['{"b": "我们", "a": "动物"}'.encode(), b'{"a": "", "b": "the"}'], ["a", "b"])
    assert encoded is not None
    assert [column[4]["characters"] for column in encoded] == [2, 5]
    assert [column[4]["empty_documents"] for column in encoded] == [1, 0]


def test_plain_text_that_looks_like_json(encode_block: Callable[[list[bytes], str], object]) -> None:
    line = b'{"text": "the"}'
    assert encode_block([line], "a.txt") != encode_block([line], "a.jsonl")
