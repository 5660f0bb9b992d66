"""Sentences of Chinese, English and mixed text.

A line end always ends a sentence. Inside a line a sentence ends after a run of end marks and the quotes and brackets
that close on it, unless what stands around the marks says otherwise: decimals, abbreviations, list numbers, an aside
in brackets, a title, a sentence that goes on after a quotation. The rules are meant to be right on ordinary prose and
never to lose a character: the sentences hold all of the text but the white space between them.

The rules stand here, in Python; `sentence_rules` hands their words and characters to the C++ that runs them on whole
corpora (csrc/sentences.cpp), and the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import regex

from megatron._C import SentenceRules

LONGEST_WORD = 40
"""Characters looked at to tell an abbreviation."""
MOST_CLOSERS = 8
"""Quotes and brackets that can close on one sentence."""

_LINE_END_CHARACTERS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_LINE_ENDS = regex.compile(f"[{_LINE_END_CHARACTERS}]+")
_MARK_CHARACTERS = "。｡．.！？!?‼⁇⁈⁉…⋯"
_MARKS = regex.compile(f"[{_MARK_CHARACTERS}]+")
_FULL_STOPS = frozenset("。｡！？‼⁇⁈⁉")
_ELLIPSES = frozenset("…⋯")
_CLOSERS = frozenset("”’」』》〉）】〕］｝)]}\"'＂＇»")
_GOES_ON = frozenset(",，、;；:：。｡．.！？!?‼⁇⁈⁉…⋯")
_HAN = regex.compile(r"[\p{Han}\u3000-\u303f\uff00-\uff60“‘—]")
_OPENERS = "“‘「『（(【〔［[《〈\"'«"
_FIRST_WORD = regex.compile(rf"\s*[{regex.escape(_OPENERS, special_only=True)}]*(\p{{L}}[\p{{L}}'’]*+(?!\.)|\S)?")
_LAST_WORD = regex.compile(r"[\p{L}\p{M}\p{N}.&'’-]+$")
_NUMERALS = "一二三四五六七八九十"
_LIST_NUMBER = regex.compile(rf"\s*[(（\[]?(?:\d{{1,3}}(?:\.\d{{1,3}})*|\p{{L}}|[ivxIVX]+|[{_NUMERALS}]{{1,3}})")
_INITIALS = regex.compile(r"(?:\p{L}\.)*\p{L}")
_SPACE = regex.compile(r"\s*")
_WORD_CHARACTER = regex.compile(r"[\p{L}\p{N}]")

# An aside keeps its sentences to itself; a title in 《》 never ends one. The bound keeps an unclosed bracket local.
_BRACKETS = [(*pair, 200) for pair in ("（）", "()", "【】", "〔〕", "［］", "[]")]
_BRACKETS += [(*pair, 100) for pair in ("《》", "〈〉")]
_ASIDES = regex.compile(
    "|".join(rf"\{opener}[^\{opener}\{closer}]{{0,{longest}}}\{closer}" for opener, closer, longest in _BRACKETS)
)
_TITLE_OPENERS = frozenset("《〈")

# Before a name: never the end. Before a number: not the end there. May end: the end only before a usual first word.
_BEFORE_NAME = frozenset(
    "mr mrs ms mx messrs mme mlle dr prof st mt gen col maj capt lt sgt cmdr adm rev hon sen rep gov pres fr "
    "vs cf viz approx e.g i.e eg ie".split()
)
_BEFORE_NUMBER = frozenset(
    "no nos fig figs vol vols p pp sec ch art eq eqs ver op tab ref jan feb mar apr jun jul aug sep sept oct nov "
    "dec".split()
)
_MAY_END = frozenset("inc ltd co corp llc bros al jr sr ph.d dept".split())
_ENDS_LIKE_A_WORD = frozenset("a.m p.m etc".split())
_FIRST_WORDS = frozenset(
    "the this that these those it its he she they we you i in on at as if but and so then there when while after "
    "before however for his her their our my an what why how who where".split()
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without white space around them and without empty ones.

    Marks without a letter or digit of their own stay with the sentence before them (or after, at the start of a line).
    """
    sentences: list[str] = []
    for line in _LINE_ENDS.split(text):
        start = begin = 0
        said = False
        for end in _sentence_ends(line):
            says = _WORD_CHARACTER.search(line, begin, end) is not None
            if said and says:
                sentences.append(line[start:begin].strip())
                start = begin
            said = said or says
            begin = end
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _sentence_ends(line: str) -> Iterator[int]:
    """Where the sentences of a line end. Takes time linear in the line, whatever it holds."""
    asides = [(match.start(), match.end()) for match in _ASIDES.finditer(line)]
    aside = begin = quotes = counted = 0
    for match in _MARKS.finditer(line):
        start, mark_end = match.span()
        quotes += line.count('"', counted, mark_end)
        counted = end = mark_end
        while end < min(len(line), mark_end + MOST_CLOSERS):
            if not _closes(line, end, quotes + line.count('"', counted, end)):
                break
            end += 1
        while aside < len(asides) and asides[aside][1] <= start:
            aside += 1
        if aside < len(asides) and asides[aside][0] < start:
            opener = asides[aside][0]
            if line[opener] in _TITLE_OPENERS or opener > _SPACE.match(line, begin).end():
                continue
        if _ends(line, begin, start, mark_end, end):
            yield end
            begin = end
    if begin < len(line):
        yield len(line)


def _closes(line: str, position: int, quotes_before: int) -> bool:
    """Whether the character closes what stands before it; straight quotes look the same on both sides."""
    character = line[position]
    if character not in _CLOSERS:
        return False
    following = line[position + 1 : position + 2]
    if character == '"':
        return quotes_before % 2 == 1 or not following.strip()
    if character == "'":
        return not following or not _WORD_CHARACTER.match(following)
    return True


def _ends(line: str, begin: int, mark: int, mark_end: int, end: int) -> bool:
    """Whether the marks line[mark:mark_end], closed up to `end`, end the sentence that began at `begin`."""
    if end == len(line):
        return True
    following = line[end]
    if following in _GOES_ON or (end > mark_end and following == "的"):
        return False
    marks = line[mark:mark_end]
    if not _FULL_STOPS.isdisjoint(marks):
        return True
    first = _FIRST_WORD.match(line, end)
    word = (first.group(1) if first else None) or ""
    spaced = following.isspace()
    if spaced and word[:1].islower():
        return False
    if "!" in marks or "?" in marks:
        return spaced or bool(_HAN.match(following))
    if not _ELLIPSES.isdisjoint(marks) or len(marks) > 1:
        # Chinese writes six dots (two characters); fewer, with no space after them, are a pause.
        long = len(marks) >= 6 or sum(character in _ELLIPSES for character in marks) >= 2
        return spaced or (long and not word[:1].islower())
    return _full_point_ends(line, begin, mark, word, closed=end > mark_end, spaced=spaced, following=following)


def _full_point_ends(
    line: str, begin: int, mark: int, word: str, *, closed: bool, spaced: bool, following: str
) -> bool:
    """Whether the single full point at `mark` ends its sentence; `word` is the first word or character after it."""
    last = _LAST_WORD.search(line, max(begin, mark - LONGEST_WORD), mark)
    token = last.group().strip("'’-") if last else ""
    if not spaced and not closed:
        if not _HAN.match(following):
            return False
        if token and (token[-1].isdigit() or (token.isascii() and len(token) == 1)):
            return False
    elif not spaced and not _HAN.match(following):
        return False
    if _LIST_NUMBER.fullmatch(line, begin, mark):  # after the above, or "1.1.1.1" would take quadratic time
        return False
    key = token.lower()
    if key in _ENDS_LIKE_A_WORD:
        return True
    if key in _BEFORE_NAME:
        return False
    if key in _BEFORE_NUMBER and word[:1].isdigit():
        return False
    if key in _MAY_END or (token.isascii() and _INITIALS.fullmatch(token)):
        return word.lower() in _FIRST_WORDS
    return True


def sentence_rules() -> SentenceRules:
    """The rules of `split_sentences` for C++: every character is classed by what Python says of it, in some 0.1 s."""
    every = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    classes = np.zeros(0x110000, dtype=np.uint16)
    # In the order of CharacterClass in csrc/sentences.h.
    patterns = [r"\p{L}", _WORD_CHARACTER.pattern, r"[\p{L}\p{M}\p{N}.&'’-]", _HAN.pattern, r"\s", r"\d"]
    for bit, pattern in enumerate(patterns):
        for match in regex.finditer(f"(?:{pattern})+", every):
            classes[match.start() : match.end()] |= 1 << bit
    # The planes after the first two hold ideographs: no white space, small letters or digits.
    for bit, method in enumerate((str.isspace, str.islower, str.isdigit), 6):
        classes[:0x20000] |= np.fromiter(map(method, every[:0x20000]), dtype=np.uint16, count=0x20000) << bit
    sets = [_LINE_END_CHARACTERS, _MARK_CHARACTERS, _FULL_STOPS, _ELLIPSES, _CLOSERS, _GOES_ON, _OPENERS]
    for bit, characters in enumerate(sets, 9):
        classes[[ord(character) for character in characters]] |= 1 << bit
    return SentenceRules(
        classes=classes,
        asides=[(opener, closer, longest, opener in _TITLE_OPENERS) for opener, closer, longest in _BRACKETS],
        before_name=list(_BEFORE_NAME),
        before_number=list(_BEFORE_NUMBER),
        may_end=list(_MAY_END),
        ends_like_a_word=list(_ENDS_LIKE_A_WORD),
        first_words=list(_FIRST_WORDS),
        numerals=_NUMERALS,
        longest_word=LONGEST_WORD,
        most_closers=MOST_CLOSERS,
    )
