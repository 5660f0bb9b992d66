"""tools/build_vocab.py: what is in a vocabulary, that it is the same every time, and what is refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from megatron.data import vocabulary
from megatron.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from megatron.data.vocabulary import VocabularyConfig, build_vocabulary, coverage, wordpiece_vocabulary
from megatron.errors import UserError
from tests.commands import run

WORDS = "playing played plays player walking walked walks talking talked Café 2023 2024 2025".split()


@pytest.fixture
def config(tmp_path: Path) -> VocabularyConfig:
    """A corpus of words in random order, enough for several blocks of work."""
    generator = random.Random(3)
    text = []
    for _ in range(1500):
        chinese = "".join(generator.choices("的一是在不了有和人这中大为上个国我以要他", k=30))
        text.append(f"{chinese}，{' '.join(generator.choices(WORDS, k=12))}。")
    text += ["罕见龘字"]
    (tmp_path / "corpus.txt").write_text("\n\n".join(text), encoding="utf-8")
    return VocabularyConfig(
        input=(f"{tmp_path}/corpus.txt",), output=f"{tmp_path}/out/vocab.txt", vocab_size=120, lower_case=True
    )


def tokens(config: VocabularyConfig) -> list[str]:
    return Path(config.output).read_text(encoding="utf-8").splitlines()


def test_what_a_vocabulary_holds(config: VocabularyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build_vocabulary(replace(config, unused_tokens=3))
    found = tokens(config)
    assert found[:8] == [*SPECIAL_TOKENS, "[unused1]", "[unused2]", "[unused3]"]
    assert len(found) == len(set(found)) <= 120
    assert set("的一是在不了有和人这中大为上个国我以要他，。") <= set(found)
    assert "龘" not in found  # once only
    assert {"playing", "walked", "2024", "cafe"} <= set(found)
    assert "Café" not in found
    tokenizer = load_tokenizer("BertWordPieceLowerCase", config.output)
    assert tokenizer.unk_id not in tokenizer.encode("我在中国 Playing PLAYS, 2023".replace(",", "，"))
    assert "[UNK]; 1.000 tokens a word" in capsys.readouterr().out


def test_characters_come_by_frequency(config: VocabularyConfig, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("国" * 5 + "我" * 9 + "中" * 7 + "大上" * 6 + "龘", encoding="utf-8")
    build_vocabulary(config)
    assert tokens(config) == [*SPECIAL_TOKENS, "我", "中", "上", "大", "国"]
    build_vocabulary(replace(config, min_frequency=6))
    assert tokens(config) == [*SPECIAL_TOKENS, "我", "中", "上", "大"]
    build_vocabulary(replace(config, vocab_size=7))
    assert tokens(config) == [*SPECIAL_TOKENS, "我", "中"]


def test_small_sizes_give_pieces(config: VocabularyConfig) -> None:
    build_vocabulary(replace(config, vocab_size=60))
    found = tokens(config)
    assert len(found) == 60
    pieces = [token for token in found[5:] if len(token.removeprefix("##")) > 1]
    assert any(piece.startswith("##") for piece in pieces)
    assert all(len(token.removeprefix("##")) >= 1 for token in found)
    tokenizer = load_tokenizer("BertWordPieceLowerCase", config.output)
    assert tokenizer.unk_id not in tokenizer.encode(" ".join(WORDS))


def test_the_case_is_kept_unless_asked(config: VocabularyConfig) -> None:
    build_vocabulary(replace(config, lower_case=False, vocab_size=200))
    assert "Café" in tokens(config)
    assert "cafe" not in tokens(config)


def test_coverage_counts_what_is_unknown() -> None:
    report = coverage(Counter({"我": 6, "龘": 2, "ab": 2}), [*SPECIAL_TOKENS, "我", "a", "##b"])
    assert "8 tokens, 1 of them Chinese characters (of 2 in the text)" in report
    assert "80.000 % of 10 words covered, 20.000 % [UNK]; 1.200 tokens a word" in report


def test_rare_words_are_forgotten_when_there_are_too_many(
    config: VocabularyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "MOST_WORDS", 20)
    assert len(vocabulary.count_words(config, list(config.input))) <= 20


def test_scaled_counts_give_a_like_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Counter({word: 1000 * i for i, word in enumerate(WORDS, 1)})
    whole = wordpiece_vocabulary(words, vocab_size=60, min_frequency=5, unused_tokens=0)
    monkeypatch.setattr(vocabulary, "MOST_TRAINING_WORDS", 9100)
    assert wordpiece_vocabulary(words, vocab_size=60, min_frequency=5, unused_tokens=0) == whole


# A seed for str hashes of each process's own: the order of sets must not show.
build = partial(run, "tools/build_vocab.py", environment={"PYTHONHASHSEED": "random"})


@pytest.mark.parametrize("model_type", ["wordpiece", "unigram", "bpe"])
def test_every_run_gives_the_same_bytes(config: VocabularyConfig, tmp_path: Path, model_type: str) -> None:
    found = []
    for workers in ("1", "2"):
        output = tmp_path / workers
        done = build(
            "--input", *config.input, "--output", str(output), "--vocab-size", "70", "--workers", workers,
            "--model-type", model_type,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{output}: ")
        assert "% [UNK]" in done.stdout
        found.append(output.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_models(config: VocabularyConfig, model_type: str) -> None:
    build_vocabulary(replace(config, model_type=model_type, vocab_size=90))  # type: ignore[arg-type]
    tokenizer = load_tokenizer("SentencePieceTokenizer", model_file=config.output)
    assert tokenizer.tokens[:5] == SPECIAL_TOKENS
    assert tokenizer.vocab_size <= 90
    ids = tokenizer.encode("我在中国 PLAYING")
    assert tokenizer.unk_id not in ids
    assert ids == tokenizer.encode("我在中国 playing")


def test_sentences_are_a_fair_sample(config: VocabularyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MOST_SENTENCES", 100)
    sample = vocabulary.sample_sentences(config, list(config.input))
    lines = Path(config.input[0]).read_text(encoding="utf-8").split("\n\n")
    places = [lines.index(sentence) for sentence in sample]
    assert len(set(places)) == 100
    assert 400 < sum(places) / 100 < 1100
    assert vocabulary.sample_sentences(config, list(config.input)) == sample


def test_very_long_sentences_count(config: VocabularyConfig, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("的一是在" * 5000 + "\0龘", encoding="utf-8")
    config = replace(config, model_type="bpe", vocab_size=30, character_coverage=1.0)
    build_vocabulary(config)
    assert {"的", "龘"} <= set(load_tokenizer("SentencePieceTokenizer", model_file=config.output).tokens)


def test_malformed_lines(config: VocabularyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps({"text": "我们" * 9}), "{", json.dumps({"text": 1})]), encoding="utf-8")
    config = replace(config, input=(str(path),))
    with pytest.raises(UserError, match="a.jsonl:2: not JSON"):
        build_vocabulary(config)
    assert not Path(config.output).exists()
    build_vocabulary(replace(config, skip_bad_lines=True))
    assert tokens(config) == [*SPECIAL_TOKENS, "们", "我"]
    assert "2 malformed lines skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 5}, "--vocab-size 5 leaves no room"),
        ({"vocab_size": 50, "unused_tokens": 45}, "leaves no room"),
        ({"min_frequency": 0}, "--min-frequency must be at least 1"),
        ({"unused_tokens": -1}, "--unused-tokens must be at least 0"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"character_coverage": 0.99}, "--character-coverage does not go with --model-type wordpiece"),
        ({"model_type": "bpe", "min_frequency": 3}, "--min-frequency does not go with --model-type bpe"),
        ({"model_type": "bpe", "unused_tokens": 3}, "--unused-tokens does not go with"),
        ({"model_type": "bpe", "character_coverage": 2.0}, "--character-coverage must be from 0.9 to 1"),
        ({"model_type": "unigram", "vocab_size": 20}, "SentencePiece cannot make 20 pieces"),
        ({"input": ("/absent.txt",)}, "no such file"),
        ({"output": "/"}, "is a folder"),
        ({"output": "/proc/nowhere/vocab.txt"}, "cannot write /proc/nowhere/vocab.txt"),
    ],
)
def test_wrong_options(config: VocabularyConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_vocabulary(replace(config, **changes))  # type: ignore[arg-type]


def test_empty_input(config: VocabularyConfig, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(" \n\n")
    for model_type in ("wordpiece", "bpe"):
        with pytest.raises(UserError, match="no text in"):
            build_vocabulary(replace(config, model_type=model_type))  # type: ignore[arg-type]
    assert not Path(config.output).exists()


def test_a_mistake_on_the_command_line_is_one_message(config: VocabularyConfig) -> None:
    done = build("--input", "/absent.txt", "--output", config.output)
    assert done.returncode == 2
    assert done.stderr == "build_vocab.py: error: --input /absent.txt: no such file, folder or glob\n"
