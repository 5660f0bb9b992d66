"""Hugging Face models with more tokens than they were trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from megatron.checkpoint.huggingface import from_huggingface, read_huggingface, to_huggingface
from megatron.errors import UserError
from tests.checkpoint.hub import TOKENS, hub_model, save_hub
from tests.model.hub import BERT
from tests.training.corpus import records, write_corpus
from tests.training.run import train

TABLE = "embeddings.word_embeddings.weight"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return save_hub(hub_model("megatron-bert"), tmp_path / "in")


def write(tmp_path: Path, *tokens: str) -> Path:
    path = tmp_path / "new.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def test_new_rows_are_means_of_the_pieces_and_old_ones_stay(tmp_path: Path, hub: Path) -> None:
    old = read_huggingface(hub)
    spare = old.model.vocab_size - len(TOKENS)
    new = ["囧", "cafe", "##eb", "今天", *(f"[unused{number}]" for number in range(spare))]
    notices = from_huggingface(hub, tmp_path / "save", extend_vocab=write(tmp_path, "天", *new))
    ids = {token: number for number, token in enumerate([*TOKENS, *new])}
    assert notices[0] == (
        f"{len(new)} new tokens have the ids {len(TOKENS)} to {len(ids) - 1}: each row is the mean of those of the "
        f"token's pieces, for 1 without any the mean of all"
    )
    assert "1 of them hold several Chinese characters (今天, ...)" in notices[1]
    to_huggingface(tmp_path / "save", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.convert_tokens_to_ids(new) == [ids[token] for token in new]
    assert tokenizer.tokenize("囧 cafeeb") == ["囧", "cafe", "##eb"]
    again = read_huggingface(tmp_path / "out")
    assert again.model.vocab_size == len(ids)
    pieces = {"cafe": ["caf", "##e"], "##eb": ["##e", "##b"], "今天": ["今", "天"]}
    for name in (TABLE, "lm_head.bias"):
        before, after = old.parameters[name], again.parameters[name]
        assert torch.equal(after[: len(TOKENS)], before[: len(TOKENS)])
        for token, parts in pieces.items():
            torch.testing.assert_close(after[ids[token]], before[[ids[part] for part in parts]].mean(0))
        torch.testing.assert_close(after[ids["囧"]], before[: len(TOKENS)].mean(0))
    for name in set(old.parameters) - {TABLE, "lm_head.bias"}:
        assert torch.equal(again.parameters[name], old.parameters[name])


def test_training_goes_on_with_the_new_tokens(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    whole = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split()
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, layer_norm_eps=BERT.layernorm_epsilon,
    )  # fmt: skip
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(whole[:60]) + "\n", encoding="utf-8")
    from_huggingface(tmp_path / "in", tmp_path / "save", extend_vocab=tmp_path / "vocab.txt")
    checkpoint = tmp_path / "save" / "iter_0000000"
    assert (checkpoint / "vocab.txt").read_text(encoding="utf-8").split() == whole
    shape = dict.fromkeys(("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"))
    flags = {**shape, "config": checkpoint / "config.json", "load": tmp_path / "save", "train_iters": 2}
    train(tmp_path, **flags, vocab_file=checkpoint / "vocab.txt")
    assert [row["step"] for row in records(tmp_path, "train")] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("天\n气\n".encode(), "has all of its 2 tokens already"),
        ("新\n\n".encode(), "new.txt:2: '' is not one token"),
        (b"a b\n", "new.txt:1: 'a b' is not one token"),
        (b"\xff\n", "is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_list_of_new_tokens(tmp_path: Path, hub: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "new.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        from_huggingface(hub, tmp_path / "save", extend_vocab=path)
    assert not (tmp_path / "save").exists()
