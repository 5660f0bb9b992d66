"""Words at the places where the segmenter puts them, and tokens that start them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.segmenter import Segmenter, align, load_segmenter, word_starts
from megatron.data.text import split_sentences
from megatron.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from megatron.errors import UserError

SENTENCE = "我们在野生动物园玩"
TEXT = st.lists(
    st.sampled_from(["我们", "野生动物园", "2023年", "unaffable", "C++", "𠀀", "é", " ", "，", "\x00", "\u200b"])
    | st.text(max_size=4),
    max_size=10,
).map("".join)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    loaded = load_segmenter("jieba")
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    characters = "我们在野生动物园玩年，。"
    tokens = [*SPECIAL_TOKENS, *characters, "un", "##aff", "##able", "20", "##23", "c", "+", "e", "##3", "3", "."]
    path.write_text("\n".join(tokens), encoding="utf-8")
    return load_tokenizer("BertWordPieceLowerCase", path)


def starts(text: str, tokenizer: Tokenizer, segmenter: Segmenter | None) -> list[str]:
    """The words of a text, as its tokens joined without their marks."""
    encoded = tokenizer.encode_batch([text])
    words: list[str] = []
    for i, start in zip(encoded[0][0], align([text], encoded, segmenter, tokenizer.continues_word), strict=True):
        token = tokenizer.tokens[i].removeprefix("##")
        if start:
            words.append(token)
        else:
            words[-1] += token
    return words


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_words_are_the_text(segmenter: Segmenter, text: str) -> None:
    assert "".join(segmenter(text)) == text


@pytest.fixture(scope="module")
def authority() -> Callable[[str], list[str]]:
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    cut: Callable[[str], list[str]] = tokenizer.lcut
    return cut


@pytest.fixture(scope="module")
def ours() -> Segmenter:
    loaded = load_segmenter("jieba")
    assert loaded is not None
    return loaded


# Words that the dictionary has not, names, numbers and their signs, blocks that end in the middle.
JIEBA_TEXT = st.lists(
    st.sampled_from(
        [
            "杭研大厦",
            "石墨烯",
            "李小福",
            "一二三",
            "3.14%",
            "-1.5",
            "C++",
            "T恤",
            "a.b",
            "B超",
            "卡拉OK",
            "\r\n",
            "\r\r\n",
            "龥",
        ]
    )
    | st.sampled_from([*"的了是我中国人大小学生研究命起源.%+#&-_ａ１・鿕鿖龦㐀𠀀\x00\u3000\x85 "])
    | st.text(max_size=3)
    | st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), max_size=4),
    max_size=14,
).map("".join)


@given(text=JIEBA_TEXT)
@settings(max_examples=1000, deadline=None)
def test_words_are_those_of_jieba(ours: Segmenter, authority: Segmenter, text: str) -> None:
    assert ours(text) == authority(text)


def test_words_are_those_of_jieba_on_real_text(ours: Segmenter, authority: Segmenter, shared_data: Path) -> None:
    for path in sorted((shared_data / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for _ in range(20):
                text = json.loads(next(lines))["text"][:1500]
                assert ours(text) == authority(text)


def test_user_words_are_those_of_jieba(tmp_path: Path) -> None:
    """Also rare words, words of other characters, and such as others begin with."""
    words = [
        "云计算平台",
        "的人 3",
        "野生动物园玩 99999",
        "中国人民大 0",
        "小A",
        "C# 5",
        "石墨 7",
        "石墨烯",
        "·点·",
        "𠀀字",
        "龘龘 0",
    ]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    loaded = load_segmenter("jieba", tmp_path / "words.txt")
    theirs = jieba.Tokenizer()
    theirs.FREQ, theirs.total = theirs.gen_pfdict(theirs.get_dict_file())
    theirs.initialized = True
    try:
        for word in words:
            theirs.add_word(*word.split())
        assert loaded is not None
        for text in ("石墨烯电池与云计算平台", "我们在野生动物园玩小AC#·点·𠀀字", "中国人民大会的人龘龘的石墨"):
            assert loaded(text) == theirs.lcut(text)
    finally:
        jieba.finalseg.Force_Split_Words.clear()


def test_chinese_words(segmenter: Segmenter, tokenizer: Tokenizer) -> None:
    assert starts(SENTENCE, tokenizer, segmenter) == segmenter(SENTENCE) == ["我们", "在", "野生", "动物园", "玩"]


def test_latin_words_and_numbers(segmenter: Segmenter, tokenizer: Tokenizer) -> None:
    assert starts("我们unaffable，2023年3.3玩", tokenizer, segmenter) == [
        "我们",
        "unaffable",
        "，",
        "2023",
        "年",
        "3.3",
        "玩",
    ]


def test_without_a_segmenter_only_continuations_do_not_start(tokenizer: Tokenizer) -> None:
    assert starts("我们unaffable 2023年", tokenizer, None) == ["我", "们", "unaffable", "2023", "年"]


def test_continuations_never_start_a_word(tokenizer: Tokenizer) -> None:
    assert starts("unaffable", tokenizer, lambda text: [text[:2], text[2:]]) == ["unaffable"]


def test_a_word_whose_first_character_is_dropped(tokenizer: Tokenizer) -> None:
    def cut(text: str) -> list[str]:
        return ["我们", "\x00在", "野生"]

    assert starts("我们\x00在野生", tokenizer, cut) == ["我们", "在", "野生"]


def test_several_texts_do_not_join(segmenter: Segmenter, tokenizer: Tokenizer) -> None:
    texts = ["我", "", "们", "\x00", "动物", "园"]
    encoded = tokenizer.encode_batch(texts)
    assert align(texts, encoded, segmenter, tokenizer.continues_word).tolist() == [True, True, True, False, True]


def test_no_texts(tokenizer: Tokenizer, segmenter: Segmenter) -> None:
    assert align([], [], segmenter, tokenizer.continues_word).shape == (0,)


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_alignment(segmenter: Segmenter, tokenizer: Tokenizer, text: str) -> None:
    """The first token of every word starts one, if it is no continuation; no other token does."""
    encoded = tokenizer.encode_batch([text])
    ids, offsets = encoded[0]
    bits = align([text], encoded, segmenter, tokenizer.continues_word)
    assert bits.dtype == np.bool_
    word_of = [number for number, word in enumerate(segmenter(text)) for _ in word]
    seen: set[int] = set()
    for i, (begin, _), bit in zip(ids, offsets, bits, strict=True):
        first = word_of[begin] not in seen
        seen.add(word_of[begin])
        assert bit == (first and not tokenizer.tokens[i].startswith("##"))


def test_every_boundary_appears_on_real_text(shared_data: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    with gzip.open(shared_data / "corpus" / "wiki_zh_articles.jsonl.gz", "rt", encoding="utf-8") as lines:
        sentences = [sentence for _ in range(5) for sentence in split_sentences(json.loads(next(lines))["text"])]
    characters = sorted({c for sentence in sentences for c in sentence.lower() if c.isprintable()} - {" "})
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *characters]), encoding="utf-8")
    tokenizer = load_tokenizer("BertWordPieceLowerCase", tmp_path / "vocab.txt")
    encoded = tokenizer.encode_batch(sentences)
    bits = align(sentences, encoded, segmenter, tokenizer.continues_word)
    place = 0
    for sentence, (ids, offsets) in zip(sentences, encoded, strict=True):
        token_at = {begin: bits[place + i] for i, (begin, _) in enumerate(offsets)}
        position = 0
        for word in segmenter(sentence):
            if position in token_at:
                assert token_at[position], (sentence, position)
                assert not any(token_at.get(position + i, False) for i in range(1, len(word)))
            position += len(word)
        place += len(ids)


def test_white_space_belongs_to_the_next_word() -> None:
    assert word_starts(["我", " ", "the", " ", " ", "zoo", " "]) == [0, 1, 5, 10]
    assert word_starts([" ", "a"]) == [0]
    assert word_starts([]) == []


def test_none_is_no_segmenter() -> None:
    assert load_segmenter("none") is None


def test_user_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeff云计算平台\n\n石墨烯电池 200 n\r\n", encoding="utf-8")
    cut = load_segmenter("jieba", path)
    plain = load_segmenter("jieba")
    assert cut is not None
    assert plain is not None
    text = "石墨烯电池与云计算平台"
    assert cut(text) == ["石墨烯电池", "与", "云计算平台"]
    assert plain(text) != cut(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("云计算\n石墨 烯 电池 3 4\n".encode(), r"words.txt:2: expected WORD \[FREQUENCY\] \[TAG\]"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_wrong_user_dictionaries(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_segmenter("jieba", path)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="there are: none, jieba"):
        load_segmenter("lac")
    with pytest.raises(UserError, match="--user-dict needs a segmenter"):
        load_segmenter("none", "words.txt")
