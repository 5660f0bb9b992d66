"""tools/inspect_dataset.py as a command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron.config import DataConfig
from megatron.data.batches import open_splits
from megatron.data.tokenizer import load_tokenizer
from tests.commands import run
from tests.training.corpus import records, write_corpus
from tests.training.run import train


def inspect(*arguments: object, code: int = 0) -> str:
    """Output of the command, or its errors where it has to fail."""
    result = run("tools/inspect_dataset.py", *arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


def test_figures_of_a_corpus(corpus: Path) -> None:
    lines = inspect("--data-path", corpus / "corpus_text_sentence").splitlines()
    found = re.match(r".*: 60 documents, 360 sentences, ([\d,]+) tokens of 2 bytes", lines[0])
    assert found is not None
    assert "2.000 tokens each" in lines[1]
    (sentences,) = [number for number, line in enumerate(lines) if line.startswith("tokens of a sentence")]
    counts = [int(line.split()[3]) for line in lines[sentences + 1 :] if line.startswith(" ")]
    assert sum(counts[:2]) == 360, "6 to 14 tokens: two lines of the histogram"


def test_a_sample_is_what_the_model_sees(corpus: Path) -> None:
    prefix = str(corpus / "corpus_text_sentence")
    flags = ["--data-path", prefix, "--vocab-file", corpus / "vocab.txt", "--seq-length", 48, "--seed", 3]
    lines = inspect(*flags, "--split", "90,10,0", "--sample-split", "valid", "--sample", 2, "--samples", 2).splitlines()
    tokenizer = load_tokenizer("BertWordPieceLowerCase", str(corpus / "vocab.txt"))
    data = DataConfig(data_path=(prefix,), split="90,10,0", seq_length=48)
    split = open_splits(data, seed=3, tokenizer=tokenizer)["valid"]
    batch = split.assemble(3, 1)
    ((_, document),) = split.documents_of(3)
    assert lines[4].startswith(f"sample 3 of valid: {batch.lengths[0]} tokens, {len(batch.masked_labels)} of them")
    assert f"document {document} of {prefix}" in lines[5]
    assert lines[6].split() == [tokenizer.tokens[token] for token in batch.tokens[0, : batch.lengths[0]]]
    labels = [tokenizer.tokens[token] for token in batch.masked_labels]
    assert [part.split()[1] for part in lines[7].split(",")] == labels


def test_the_documents_behind_a_step(corpus: Path, tmp_path: Path) -> None:
    train(corpus, save=tmp_path / "save", train_iters=4, metrics_file=tmp_path / "metrics.jsonl")
    run = ["--config", tmp_path / "save" / "config.json"]
    by_flags = inspect(*run, "--step", 3).splitlines()
    assert by_flags[0] == "step 3: samples 16 to 23" and len(by_flags) == 9
    row = records(tmp_path)[2]
    assert (row["step"], row["consumed_samples"]) == (3, 24)
    options = ["--data-path", corpus / "corpus_text_sentence", "--vocab-file", corpus / "vocab.txt", "--seq-length", 48]
    options += ["--split", "90,10,0", "--metrics-file", tmp_path / "metrics.jsonl"]
    assert inspect(*options, "--step", 3).splitlines() == by_flags
    error = inspect(*options, "--step", 30, code=2)
    assert "no training row of step 30; the nearest is 4" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data-path is required"),
        (["--data-path", "nowhere"], "nowhere.idx does not exist"),
        (["--data-path", "a", "--sample", "1", "--step", "2"], "--sample and --step exclude each other"),
        (["--data-path", "a", "--vocab-file", "v", "--sample", "1"], "--seq-length is required"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str) -> None:
    assert message in inspect(*arguments, code=2)
