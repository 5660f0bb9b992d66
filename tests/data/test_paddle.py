"""PaddleNLP's corpora: the same sentences, with boundaries in .words, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron.data import paddle
from megatron.data.indexed import IndexedDataset
from megatron.data.paddle import ConvertConfig, convert_dataset
from megatron.data.tokenizer import SPECIAL_TOKENS
from megatron.errors import UserError
from tests.commands import run

TOKENS = [*SPECIAL_TOKENS, "我", "们", "在", "the", "##s", "##们", "##园"]
DOCUMENTS = [[["我", "##们", "在"], ["the", "##s"]], [["在", "##园", "我"], [], ["们"]], [], [["the"]]]


@pytest.fixture
def config(tmp_path: Path) -> ConvertConfig:
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS), encoding="utf-8")
    save(tmp_path, [TOKENS.index(token) for document in DOCUMENTS for sentence in document for token in sentence])
    return ConvertConfig(
        input=f"{tmp_path}/corpus", output_prefix=f"{tmp_path}/out/corpus", vocab_file=f"{tmp_path}/vocab.txt"
    )


def save(folder: Path, ids: list[int], docs: list[int] | None = None) -> None:
    lens = [len(sentence) for document in DOCUMENTS for sentence in document]
    docs = docs or [0, *np.cumsum([len(document) for document in DOCUMENTS]).tolist()]
    np.save(folder / "corpus_ids.npy", np.array(ids, dtype=np.uint16))
    np.savez(folder / "corpus_idx.npz", lens=np.array(lens, np.int32), docs=np.array(docs, np.int64))


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_sentences_and_word_starts(config: ConvertConfig, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(paddle, "CHUNK", chunk)
    convert_dataset(config)
    dataset = IndexedDataset(config.output_prefix)
    sentences = [sentence for document in DOCUMENTS for sentence in document if sentence]
    assert dataset.document_index.tolist() == [0, 2, 4, 5]
    for i, sentence in enumerate(sentences):
        # The piece of a character becomes the character, unless the vocabulary lacks it.
        expected = ["们" if token == "##们" else token for token in sentence]
        assert [TOKENS[token] for token in dataset.sentence(i)] == expected
        starts = dataset.word_starts(i)
        assert starts is not None
        assert starts.tolist() == [not token.startswith("##") for token in sentence]


def test_the_command_line(config: ConvertConfig) -> None:
    done = run(
        "tools/convert_dataset.py", "--input", config.input, "--output-prefix", config.output_prefix,
        "--vocab-file", config.vocab_file,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 documents, 5 sentences, 10 tokens" in done.stdout


def test_files_that_are_wrong(config: ConvertConfig, tmp_path: Path) -> None:
    whole = (tmp_path / "corpus_idx.npz").read_bytes()
    ids = np.load(tmp_path / "corpus_ids.npy").tolist()
    for damage, message in (
        (lambda: save(tmp_path, [*ids[:-1], 12]), "holds token id 12, but .*vocab.txt has 12 tokens"),
        (lambda: save(tmp_path, ids[:-1]), "sentences of 10 tokens do not fit 9 ids"),
        (lambda: save(tmp_path, ids, [0, 3, 2, 6]), "do not cover its 6 sentences in order"),
        (lambda: save(tmp_path, ids, [0, 5]), "do not cover its 6 sentences in order"),
        (lambda: (tmp_path / "corpus_idx.npz").write_bytes(whole[:-40]), "is damaged"),
        (lambda: np.save(tmp_path / "corpus_ids.npy", np.array([{}]), allow_pickle=True), "is damaged"),
        (lambda: (tmp_path / "corpus_ids.npy").unlink(), "corpus_ids.npy does not exist"),
    ):
        damage()
        with pytest.raises(UserError, match=message):
            convert_dataset(config)
        assert not list((tmp_path / "out").glob("*") if (tmp_path / "out").exists() else [])
