"""Ids equal to those of Hugging Face's classes, offsets, and vocabularies that are wrong."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from megatron.errors import UserError

WORDS = "the un ##aff ##able ##ing play 20 ##23 é ß ı İ ab ##c café cafe カ ##タ 한 ##국 \u0e01".split()
WORDS += "我 们 你 好 。 ， , . ! [ ] #".split()
VOCABULARY = [*SPECIAL_TOKENS, "[unused1]", *WORDS, *"abcdefgh0123", *(f"##{c}" for c in "abdefgh0123é")]
TEXT = st.lists(
    st.sampled_from([*WORDS, "unaffable", "Playing", "2023", "[MASK]", "[mask]", "[SEP]", "é", "\x00", "\ufffd", " "])
    | st.text(max_size=6),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in dict.fromkeys(VOCABULARY)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["BertWordPieceCase", "BertWordPieceLowerCase"])
def pair(request: pytest.FixtureRequest, vocab_file: Path) -> tuple[Tokenizer, object]:
    """Our tokenizer and Hugging Face's for the same file."""
    transformers = pytest.importorskip("transformers")
    lower_case = request.param == "BertWordPieceLowerCase"
    theirs = transformers.BertTokenizer.from_pretrained(vocab_file.parent, do_lower_case=lower_case)
    return load_tokenizer(request.param, vocab_file), theirs


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_ids_equal_hugging_face(pair: tuple[Tokenizer, object], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]


def test_ids_equal_hugging_face_on_real_text(shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = []
    for path in sorted((shared_data / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(next(lines))["text"][:2000] for _ in range(5)]
    characters = sorted({character for text in texts for character in text if character.isprintable()} - {" "})
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *characters[::2], *(f"##{character}" for character in characters[:100])])
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    for kind, lower_case in (("BertWordPieceCase", False), ("BertWordPieceLowerCase", True)):
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=lower_case)
        ours = load_tokenizer(kind, tmp_path / "vocab.txt")
        expected = theirs(texts, add_special_tokens=False)["input_ids"]
        assert [ids for ids, _ in ours.encode_batch(texts)] == expected
        everything((ours, theirs), texts)


def everything(pair: tuple[Tokenizer, object], texts: list[str]) -> None:
    """Ids and offsets from C++ are those of the library."""
    tokenizer = pair[0]
    assert tokenizer.wordpiece is not None
    for text, (ids, offsets) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.wordpiece.encode(text) == (ids, offsets), repr(text)


@given(text=TEXT)
@settings(max_examples=500, deadline=None)
def test_compiled_wordpiece(pair: tuple[Tokenizer, object], text: str) -> None:
    everything(pair, [text])


def test_compiled_wordpiece_knows_every_character(pair: tuple[Tokenizer, object]) -> None:
    """Each alone among others; what it does not know for certain it asks of the library."""
    characters = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x20010))]
    everything(pair, [f"a{character}b" for character in characters])


def test_compiled_wordpiece_on_special_tokens_and_long_words(pair: tuple[Tokenizer, object]) -> None:
    texts = ["[MASK]", "a[MASK]b[PAD", "[[SEP]]", "[MASK]\u0301", "[mask][unused1]", "[", "[MASK" + "\u0301]"]
    texts += ["a" * 100, "a" * 101, "é" * 101, "ab" * 5000, "\u0301" * 300, "b" * 99 + "ß"]
    everything(pair, texts)
    tokenizer = pair[0]
    assert tokenizer.wordpiece is not None
    assert tokenizer.wordpiece.encode("[MASK]") == ([tokenizer.mask_id], [(0, 6)])


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_offsets_point_into_the_text(pair: tuple[Tokenizer, object], text: str) -> None:
    tokenizer, _ = pair
    ids, offsets = tokenizer.encode_batch([text])[0]
    assert len(ids) == len(offsets)
    assert all(0 <= begin <= end <= len(text) for begin, end in offsets)
    assert offsets == sorted(offsets)


def test_no_truncation(pair: tuple[Tokenizer, object]) -> None:
    assert len(pair[0].encode("我" * 5000)) == 5000


def test_what_a_vocabulary_knows_of_itself(vocab_file: Path) -> None:
    tokenizer = load_tokenizer("BertWordPieceCase", vocab_file)
    assert tokenizer.vocab_size == len(set(VOCABULARY))
    named = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert [tokenizer.tokens[i] for i in named] == list(SPECIAL_TOKENS)
    kept_out = {*SPECIAL_TOKENS, "[unused1]"}
    assert tokenizer.random_ids.dtype == np.int32
    assert {tokenizer.tokens[i] for i in tokenizer.random_ids} == set(VOCABULARY) - kept_out
    assert {tokenizer.tokens[i] for i in np.flatnonzero(tokenizer.continues_word)} == {
        token for token in VOCABULARY if token.startswith("##")
    }


def test_the_hash_is_that_of_the_tokens(vocab_file: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("BertWordPieceCase", vocab_file)
    other = tmp_path / "vocab.txt"
    other.write_bytes(b"\xef\xbb\xbf" + vocab_file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer("BertWordPieceCase", other).vocabulary_hash == tokenizer.vocabulary_hash
    other.write_bytes(vocab_file.read_bytes() + b"more\n")
    assert load_tokenizer("BertWordPieceCase", other).vocabulary_hash != tokenizer.vocabulary_hash


def test_a_line_separator_can_be_a_token(tmp_path: Path) -> None:
    tokens = [*SPECIAL_TOKENS, "\u2028", "\x85", "我"]
    (tmp_path / "vocab.txt").write_bytes("\n".join(tokens).encode())
    assert load_tokenizer("BertWordPieceCase", tmp_path / "vocab.txt").tokens == tuple(tokens)


SPECIAL_LINES = "".join(f"{token}\n" for token in SPECIAL_TOKENS).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SPECIAL_LINES + "我\n你\n我\n".encode(), r"vocab.txt:8: '我' stands already in line 6"),
        (SPECIAL_LINES + b"a\n\nb\n", r"vocab.txt:7: an empty line"),
        (b"[PAD]\n[CLS]\na\n", r"lacks \[UNK\], \[SEP\], \[MASK\]"),
        (b"", "lacks"),
        (SPECIAL_LINES + b"\xff\xfe", r"not UTF-8 \(byte 31\)"),
        (None, "No such file"),
    ],
)
def test_wrong_vocabularies(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer("BertWordPieceCase", path)


def train(**options: object) -> bytes:
    model = io.BytesIO()
    text = ["我们在野生动物园玩了一天", "the quick brown fox", "动物园里有老虎和狮子", "我们 like the zoo"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


BERT_PIECES = {
    "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
    "eos_piece": "[SEP]", "control_symbols": ["[MASK]"],
}  # fmt: skip


def test_sentencepiece(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(train(**BERT_PIECES))
    tokenizer = load_tokenizer("SentencePieceTokenizer", model_file=path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = ["我们 like the 动物园 㗎", "", "[MASK] the\x00 zoo"]
    encoded = tokenizer.encode_batch(texts)
    assert [ids for ids, _ in encoded] == processor.encode(texts)
    assert tokenizer.unk_id == processor.unk_id()
    assert tokenizer.mask_id not in {i for ids, _ in encoded for i in ids}
    for text, (ids, offsets) in zip(texts, encoded, strict=True):
        for i, (begin, end) in zip(ids, offsets, strict=True):
            if i != tokenizer.unk_id:
                assert tokenizer.tokens[i].replace("▁", " ").strip() == text[begin:end].strip()
    special = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    assert special.isdisjoint(tokenizer.random_ids)
    assert len(tokenizer.random_ids) == tokenizer.vocab_size - 5


def test_sentencepiece_models_that_do_not_do(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(train())
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer("SentencePieceTokenizer", model_file=path)
    for content in (b"", b"[PAD]\n[UNK]\n", train()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a SentencePiece model"):
            load_tokenizer("SentencePieceTokenizer", model_file=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "GPT2BPETokenizer"}, "unknown; there are: BertWordPieceCase"),
        ({"kind": "BertWordPieceCase"}, "needs --vocab-file"),
        ({"kind": "BertWordPieceCase", "model_file": "x"}, "--tokenizer-model does not go with"),
        ({"kind": "SentencePieceTokenizer"}, "needs --tokenizer-model"),
        ({"kind": "SentencePieceTokenizer", "vocab_file": "x"}, "--vocab-file does not go with"),
        ({"kind": "SentencePieceTokenizer", "model_file": "/absent"}, "No such file"),
    ],
)
def test_wrong_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(**arguments)
