"""Sentence splitting: hand-made hard cases, and properties on any text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron._C import SentenceRules
from megatron.data.text import sentence_rules, split_sentences

# Sentences are written with a vertical bar between them; a bar eats the white space beside it.
CASES = [
    "今天天气很好。|我们去公园吧！|你去吗？",
    "没有句号的一行",
    # quotes and brackets that close on the sentence
    "他说：“你好。”|然后走了。",
    "“我走了。|你呢？”|他问。",
    "「行く。」|「待って！」|次。",
    "她喊道：『快跑！』|大家都跑了。",
    '他说"你好。"|她说"再见。"|结束了。',
    'He said "Hi." | Then he left. | "Really?" she asked. | "Yes!" | He nodded.',
    "'I am.' | He said. | It's John's. | 'What?' | 'No.'",
    "He left. | (He was tired.) | Then he slept (badly). | End.",
    "（第一句。|第二句。）|第三句。",
    # the sentence goes on
    "“真的吗？”，他问。",
    "他高喊“万岁！”的口号。|结束了。",
    "他（真的吗？我不信。）来了。|下一句。",
    "《你好！李焕英》是一部电影。|很好看。",
    "《怎么办？》的作者是谁？",
    "he said (why? no idea.) that it works. | Good.",
    # runs of marks and ellipses
    "真的吗？！|不会吧！！！|好。。。|算了",
    "他走了……|天黑了。",
    "……但是他没来。",
    "嗯…好吧。",
    "“我……”|他说不下去了。",
    "Well... | Then he left... or so. | Wait… | What?!",
    "等等......|然后呢？",
    # decimals, versions, addresses, list numbers
    "圆周率是3.14。|版本2.0.1发布了。",
    "It costs $3.50 a day. | Version 2.0.1 is out.",
    "visit http://a.b/c?d=e.html now. | OK.",
    "1. Introduction. | We begin.",
    "1.洗菜2.切菜3.下锅",
    "一.总则",
    "A.苹果 B.香蕉",
    # abbreviations and initials
    "Mr. Smith and Dr. Wang went to St. Louis. | They stayed.",
    "J. K. Rowling wrote it. | I. Newton did not.",
    "See Fig. 3 and No. 5. | I said no. | He left.",
    "The U.S. Army left. | He lives in the U.S. | They do not.",
    "He came at 5 p.m. | The train was late.",
    "pens, paper, etc. | Users like it, e.g. Anna, i.e. the first.",
    "Apple Inc. CEO Tim Cook spoke. | He works at Apple Inc. | The end.",
    "Smith et al. (2019) show it. | Vol. 2 follows on Jan. 5 at noon.",
    # mixed scripts
    "我用Python.|你呢?|我也是!|好",
    "I like Python. | 我也是。 | Yes. | 好的！",
    "买了 iPhone 15！|好用。",
    "温度25.5℃。|Yahoo! is old.",
]


@pytest.fixture(scope="module")
def rules() -> SentenceRules:
    return sentence_rules()


@pytest.mark.parametrize("case", CASES)
def test_hard_cases(case: str) -> None:
    sentences = [sentence.strip() for sentence in case.split("|")]
    # Latin sentences have a space between them in running text, Chinese ones have none.
    text = " ".join(sentences) if " | " in case else "".join(sentences)
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\u2028", "\x85", "\v"])
def test_a_line_end_ends_a_sentence(end: str) -> None:
    assert split_sentences(f"　　第一行{end}  第二行 ") == ["第一行", "第二行"]


@pytest.mark.parametrize("text", ["", " ", "\n\r\n", "\u3000 \t\n"])
def test_nothing_in_nothing_out(text: str) -> None:
    assert split_sentences(text) == []


def test_marks_alone_stay_with_a_neighbour() -> None:
    assert split_sentences("好。 ！ ？") == ["好。 ！ ？"]
    assert split_sentences("！！好。") == ["！！好。"]
    assert split_sentences("。。。") == ["。。。"]


TEXT = st.text(
    st.sampled_from('我你a B1。！？.!?…"“”‘’（）()《》「」，,的 \n\t') | st.characters(codec="utf-8"), max_size=80
)


def without_space(text: str) -> str:
    return "".join(text.split())


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_no_character_is_lost(text: str) -> None:
    sentences = split_sentences(text)
    assert without_space("".join(sentences)) == without_space(text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_lines_do_not_touch_each_other(first: str, second: str) -> None:
    assert split_sentences(f"{first}\n{second}") == split_sentences(first) + split_sentences(second)


@given(st.text(st.characters(categories=["Lo"]), min_size=1, max_size=20), st.integers(1, 5))
def test_every_full_stop_ends_a_chinese_sentence(sentence: str, number: int) -> None:
    assert split_sentences(f"{sentence}。" * number) == [f"{sentence}。"] * number


def test_long_hostile_lines_take_linear_time(rules: SentenceRules) -> None:
    # A quadratic step over these would take minutes.
    for piece in ("（", '。"', "。", "。 ", "a.", "a. ", "(a.)", "《（", "U.S. ", "…", "1.", "1. "):
        text = piece * 20_000
        sentences = split_sentences(text)
        assert without_space("".join(sentences)) == without_space(text)
        assert rules.split(text) == sentences


PIECES = st.sampled_from(
    ["Mr.", "No. 5", "U.S.", "3.14", "a.m. The", "Ph.D.", "iv.", "1.2.", "（一）。", "《你好！李", "……", "...", "。”"]
    + ['!"', "the ", "It's. ", "'?' ", "\u212a.", "İ.", "٣.", "①. ", "é. É", "的"]
) | st.sampled_from("ⓐ\x1f\u3000\xa0\x85[（")


@given(st.lists(PIECES | TEXT, max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_the_compiled_rules_are_these(rules: SentenceRules, text: str) -> None:
    assert rules.split(text) == split_sentences(text)


def test_the_compiled_rules_on_real_text(rules: SentenceRules, shared_data: Path) -> None:
    for path in sorted((shared_data / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for _ in range(20):
                text = json.loads(next(lines))["text"][:5000]
                assert rules.split(text) == split_sentences(text)


def test_real_text(shared_data: Path) -> None:
    with gzip.open(shared_data / "corpus" / "wiki_zh_articles.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(20)]
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    assert without_space("".join(sentences)) == without_space("".join(texts))
    lengths = sorted(map(len, sentences))
    assert 15 < lengths[len(lengths) // 2] < 80
    assert sum("。" in sentence[:-3] for sentence in sentences) < 0.02 * len(sentences)
