"""The tokenizer of an exported folder gives the ids of pre-training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from megatron.checkpoint.hub_tokenizer import TokenizerFile, read_hub_tokenizer, write_hub_tokenizer
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError
from tests.checkpoint.hub import TOKENS

TEXTS = ["今天天气很好。", "A a Ab café CAFÉ", "人民日报,了解!", "  今 天\t是 ", "", "한", "的" * 30]
VOCABULARY = "".join(f"{token}\n" for token in TOKENS).encode()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def export(tokenizer: TokenizerFile, folder: Path, model_type: str = "bert") -> Any:
    assert write_hub_tokenizer(tokenizer, folder, 128) == ()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 100}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("model_type", ["bert", "megatron-bert", "ernie"])
@pytest.mark.parametrize("kind", ["BertWordPieceCase", "BertWordPieceLowerCase"])
def test_wordpiece(tmp_path: Path, kind: str, model_type: str) -> None:
    theirs = export(TokenizerFile(kind=kind, name="vocab.txt", content=VOCABULARY), tmp_path, model_type)
    ours = load_tokenizer(kind, tmp_path / "vocab.txt")
    for text in TEXTS:
        assert ids(theirs, text) == ours.encode(text)
    lower = kind == "BertWordPieceLowerCase"
    assert ids(theirs, "A") == [TOKENS.index("a" if lower else "A")]
    pair = theirs("今天", "天气")
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert pair["input_ids"][0] == 2
    assert len(theirs) == len(TOKENS)
    assert theirs.model_max_length == 128
    assert [getattr(theirs, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json alone", "no tokenizer_config.json"])
def test_what_transformers_writes_is_read_back(tmp_path: Path, lower_case: bool, files: str) -> None:
    kind = "BertWordPieceLowerCase" if lower_case else "BertWordPieceCase"
    tokenizer = TokenizerFile(kind=kind, name="vocab.txt", content=VOCABULARY)
    folder = tmp_path / "plain"
    folder.mkdir()
    theirs = export(tokenizer, folder)
    if files != "vocab.txt":
        folder = tmp_path / "saved"
        theirs.save_pretrained(folder)
        (folder / "vocab.txt").unlink(missing_ok=True)
        assert (folder / "tokenizer.json").exists()
        if files == "no tokenizer_config.json":
            (folder / "tokenizer_config.json").unlink()
    assert read_hub_tokenizer(folder) == (tokenizer, ())


def test_case_that_is_not_said_is_that_of_transformers_and_noted(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    tokenizer, notices = read_hub_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.kind == "BertWordPieceLowerCase"
    assert "do_lower_case" in notices[0]


def test_a_folder_without_a_vocabulary(tmp_path: Path) -> None:
    tokenizer, notices = read_hub_tokenizer(tmp_path)
    assert tokenizer is None
    assert "no vocab.txt" in notices[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_lower_case": False, "strip_accents": True}, "strip_accents"),
        ({"do_lower_case": True, "tokenize_chinese_chars": False}, "tokenize_chinese_chars"),
    ],
)
def test_settings_that_give_other_ids_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        read_hub_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0}}},
        {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}},
        {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": "1"}}},
        {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 0}}},
        {"model": []},
        {"added_tokens": [3]},
    ],
)
def test_a_tokenizer_json_of_another_kind_or_with_gaps(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer.json"):
        read_hub_tokenizer(tmp_path)


def sentencepiece_model(model_type: str, **more: Any) -> bytes:
    model = io.BytesIO()
    sentences = [
        a + b + c
        for a in ("今天", "明天", "昨天")
        for b in ("天气", "Weather", "心情")
        for c in ("很好。", "不好!", "")
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3), model_writer=model, model_type=model_type, vocab_size=60,
        hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece="[PAD]", unk_piece="[UNK]",
        bos_piece="[CLS]", eos_piece="[SEP]", control_symbols=["[MASK]"], minloglevel=2, **more,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf"])
def test_sentencepiece(tmp_path: Path, model_type: str, rule: str) -> None:
    content = sentencepiece_model(model_type, normalization_rule_name=rule)
    tokenizer = TokenizerFile(kind="SentencePieceTokenizer", name="tokenizer.model", content=content)
    theirs = export(tokenizer, tmp_path)
    ours = load_tokenizer("SentencePieceTokenizer", model_file=tmp_path / "tokenizer.model")
    for text in [*TEXTS, "今天 天气Weather  很好!", "Ｗeather今天", "明天心情not好"]:
        assert ids(theirs, text) == ours.encode(text), text
    pair = theirs("今天", "天气")
    assert pair["input_ids"][0] == theirs.cls_token_id == 2
    assert pair["input_ids"].count(theirs.sep_token_id) == 2
    assert pair["token_type_ids"] == [0] * (pair["input_ids"].index(3) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(3) - 1
    )
    assert theirs.mask_token_id == 4
    assert len(theirs) == ours.vocab_size == len(tokenizer.tokens)
    assert read_hub_tokenizer(tmp_path) == (tokenizer, ())


def test_a_sentencepiece_model_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    content = sentencepiece_model("unigram", remove_extra_whitespaces=False)
    tokenizer = TokenizerFile(kind="SentencePieceTokenizer", name="tokenizer.model", content=content)
    (notice,) = write_hub_tokenizer(tokenizer, tmp_path, 128)
    assert "AutoTokenizer cannot load the folder (its SentencePiece model keeps white space)" in notice
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_a_damaged_sentencepiece_model_is_named() -> None:
    with pytest.raises(UserError, match="not a SentencePiece model"):
        _ = TokenizerFile(kind="SentencePieceTokenizer", name="tokenizer.model", content=b"garbage").tokens
