"""What a user can do wrong: one clear message on every rank, exit code not 0, no hang, no traceback of ours."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, finish
from tests.ranks import run_script
from tests.training.corpus import arguments, command, write_corpus
from tests.training.run import train


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def another_model(folder: Path) -> None:
    train(folder, save=folder / "other", hidden_size=16, train_iters=1)


def one_sentence_documents(folder: Path) -> None:
    write_corpus(folder, sentences=1)


def few_documents(folder: Path) -> None:
    write_corpus(folder, documents=2)


def smaller_vocabulary(folder: Path) -> None:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")


def other_vocabulary(folder: Path) -> None:
    train(folder, save=folder / "other", train_iters=1)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(lines[:5] + lines[:4:-1]) + "\n", encoding="utf-8")


CORPUS = "corpus_text_sentence"

# Name: what is done to the folder, flags, what the message must name.
CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], list[str]]] = {
    "missing .bin": (lambda f: (f / f"{CORPUS}.bin").unlink(), {}, [f"{CORPUS}.bin"]),
    "missing .idx": (lambda f: (f / f"{CORPUS}.idx").unlink(), {}, [f"{CORPUS}.idx"]),
    "empty .bin": (lambda f: (f / f"{CORPUS}.bin").write_bytes(b""), {}, [f"{CORPUS}.bin", "empty"]),
    "empty .idx": (lambda f: (f / f"{CORPUS}.idx").write_bytes(b""), {}, [f"{CORPUS}.idx", "empty"]),
    "truncated .bin": (lambda f: cut(f / f"{CORPUS}.bin"), {}, [f"{CORPUS}.bin"]),
    "truncated .idx": (lambda f: cut(f / f"{CORPUS}.idx"), {}, [f"{CORPUS}.idx"]),
    "token ids beyond the vocabulary": (smaller_vocabulary, {}, [CORPUS, "vocab"]),
    "corpus too small for the split": (few_documents, {"split": "98,1,1"}, ["--split", "too few"]),
    "no usable documents for SOP": (one_sentence_documents, {}, ["--bert-no-binary-head"]),
    "missing vocabulary": (lambda f: (f / "vocab.txt").unlink(), {}, ["vocab.txt"]),
    "unwritable save folder": (lambda f: (f / "file").write_text("x"), {"save": "file/save"}, ["--save", "file/save"]),
    "checkpoint of another model": (another_model, {"load": "other"}, ["not the run of", "--hidden-size"]),
    "checkpoint of another vocabulary": (other_vocabulary, {"load": "other"}, ["vocabulary", "vocab.txt"]),
    "nothing to load": (lambda f: None, {"load": "nowhere"}, ["--load", "nowhere"]),
    "batch that does not divide": (lambda f: None, {"global_batch_size": 12}, ["nearest: 8 or 16"]),
    "metrics file in a file": (lambda f: (f / "file").write_text("x"), {"metrics_file": "file/m"}, ["--metrics-file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_message_on_every_rank(name: str, corpus: Path) -> None:
    damage, flags, words = CASES[name]
    damage(corpus)
    shutil.rmtree(corpus / "cache", ignore_errors=True)
    paths = {key: corpus / value if key in ("save", "load", "metrics_file") else value for key, value in flags.items()}
    for code, err in run_script(ROOT / "pretrain_bert.py", arguments(corpus, **paths), 2, corpus):
        assert code == 2, err
        (message,) = [line for line in err.splitlines() if not line.startswith("[")]  # gloo's own notices
        assert message.startswith("pretrain_bert.py: error: ")
        for word in words:
            assert word in message


def test_torchrun_fails_too_and_shows_the_message(corpus: Path) -> None:
    (corpus / "vocab.txt").unlink()
    code, _, err = finish(command(arguments(corpus), processes=2))
    assert code != 0 and "pretrain_bert.py: error: " in err


@pytest.mark.parametrize(
    "flags", [{"fp16": True}, {"cuda_graphs": True}, {"optimizer": "apex-adam"}, {"layernorm": "apex"}], ids=str
)
def test_what_needs_cuda(flags: dict[str, Any], corpus: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    code, _, err = finish(command(arguments(corpus, **flags)))
    ((name, value),) = flags.items()
    flag = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
    assert code == 2 and f"error: {flag} needs a CUDA device" in err and "Traceback" not in err
