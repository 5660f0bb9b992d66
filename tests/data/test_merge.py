"""Merged datasets: the bytes of one run, and what does not go together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron.data import division
from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.join import Part, join_datasets
from megatron.data.merge import MergeConfig, merge_datasets
from megatron.data.preprocess import PreprocessConfig, preprocess
from megatron.data.provenance import source_of
from megatron.data.tokenizer import SPECIAL_TOKENS
from megatron.errors import UserError
from tests.commands import run
from tests.data.made_up import FIRST, random_documents, write_corpus

SUFFIXES = ("bin", "idx", "words", "sources", "json")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreprocessConfig:
    """A corpus of two plain files that divide into several shards."""
    monkeypatch.setattr(division, "SMALLEST_SHARD", 1 << 12)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *"我们在动物园你好。0123456789"]), encoding="utf-8")
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("我们在动物园你好。"), 60)) + str(i) for i in range(400)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines[7] = lines[60] = '{"text": "\\u200b"}'
    lines[9] = ""
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return PreprocessConfig(
        input=(f"{tmp_path}/a.jsonl", f"{tmp_path}/b.txt"),
        output_prefix=f"{tmp_path}/one/corpus",
        tokenizer_type="BertWordPieceCase",
        vocab_file=f"{tmp_path}/vocab.txt",
        split_sentences=True,
    )


def contents(prefix: str) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in SUFFIXES}


def test_parts_merge_to_the_bytes_of_one_run(config: PreprocessConfig, tmp_path: Path) -> None:
    preprocess(config)
    one = contents(f"{config.output_prefix}_text_sentence")
    parts = replace(config, output_prefix=f"{tmp_path}/parts/corpus")
    for part in (3, 1, 2):
        preprocess(replace(parts, shard=f"{part}/3"))
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert len(names) == 3 * len(SUFFIXES)
    assert names[0] == "corpus-00001-of-00003_text_sentence.bin"
    done = run(
        "tools/merge_datasets.py", "--input", f"{tmp_path}/parts/corpus-*_text_sentence",
        "--output-prefix", f"{tmp_path}/merged/corpus",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    merged = contents(f"{tmp_path}/merged/corpus")
    # The output prefix is an option, so it stands in the card.
    merged["json"] = merged["json"].replace(b"/parts/", b"/one/")
    assert merged == one

    with pytest.raises(UserError, match="is part 1/3 of a run: merge its 3 parts .*part 2/3 is missing"):
        merge_datasets(
            MergeConfig(
                input=(f"{tmp_path}/parts/*-00001-*", f"{tmp_path}/parts/*-00003-*"), output_prefix=f"{tmp_path}/x"
            )
        )


def test_sources(config: PreprocessConfig, tmp_path: Path) -> None:
    preprocess(config)
    preprocess(replace(config, output_prefix=f"{tmp_path}/two/corpus", input=config.input[1:]))
    prefixes = [f"{tmp_path}/{name}/corpus_text_sentence" for name in ("two", "one")]
    merge_datasets(MergeConfig(input=tuple(prefixes), output_prefix=f"{tmp_path}/merged/corpus"))
    dataset = IndexedDataset(f"{tmp_path}/merged/corpus")
    b_texts = [(config.input[1], 2 * i + 1) for i in range(400)]
    a_texts = [(config.input[0], i + 1) for i in range(400) if i not in (7, 9, 60)]
    found = [source_of(dataset.prefix, document) for document in range(dataset.num_documents)]
    assert found == b_texts + a_texts + b_texts
    card = json.loads(Path(f"{dataset.prefix}.json").read_text())
    assert card["files"] == [config.input[1], config.input[0]]
    assert card["documents"] == 1197
    assert card["empty_documents"] == 2
    assert "input" not in card["options"]
    assert card["options"]["split_sentences"] is True

    with pytest.raises(UserError, match="has no document 1197"):
        source_of(dataset.prefix, 1197)
    with pytest.raises(UserError, match="has no document -1"):
        source_of(dataset.prefix, -1)
    Path(f"{dataset.prefix}.sources").write_bytes(Path(f"{dataset.prefix}.sources").read_bytes()[:-3])
    with pytest.raises(UserError, match="sources is damaged"):
        source_of(dataset.prefix, 0)
    Path(f"{dataset.prefix}.sources").unlink()
    with pytest.raises(UserError, match="sources does not exist"):
        source_of(dataset.prefix, 0)


@pytest.mark.parametrize("words", [True, False])
def test_joined_datasets_are_those_of_one_writer(tmp_path: Path, words: bool) -> None:
    rng = np.random.default_rng(5)
    documents = random_documents(rng, 60)
    total = sum(map(sum, documents))
    starts = rng.random(total) < 0.5 if words else None
    whole = write_corpus(tmp_path / "whole", documents, starts)
    cuts = [0, 1, 2, 17, 18, 60]
    first, parts = 0, []
    for i, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        lengths = np.concatenate(documents[begin:end])
        count = int(lengths.sum())
        writer = IndexedWriter(f"{tmp_path}/{i}", FIRST + total, words=words)
        part_starts = None if starts is None else starts[first : first + count]
        tokens = np.arange(FIRST + first, FIRST + first + count)
        writer.add(tokens, lengths, np.array([len(document) for document in documents[begin:end]]), part_starts)
        writer.finish()
        first += count
        parts.append(Part(prefix=f"{tmp_path}/{i}"))
    copied: list[int] = []
    join_datasets(parts, f"{tmp_path}/joined", words=words, sources=False, copied=copied.append)
    assert sum(copied) == Path(f"{whole.prefix}.bin").stat().st_size
    for suffix in ("bin", "idx", "words") if words else ("bin", "idx"):
        assert (tmp_path / f"joined.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preprocessed corpus."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *"你好。"]), encoding="utf-8")
    (folder / "a.txt").write_text("你好。\n\n好。", encoding="utf-8")
    preprocess(
        PreprocessConfig(
            input=(f"{folder}/a.txt",),
            output_prefix=f"{folder}/out/corpus",
            tokenizer_type="BertWordPieceCase",
            vocab_file=f"{folder}/vocab.txt",
            split_sentences=True,
        )
    )
    return folder / "out"


def edit_card(prefix: str, **changes: object) -> None:
    path = Path(f"{prefix}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda prefix: edit_card(prefix, vocabulary_hash="0"), r"two.* does not go with .*one.*: another vocabulary"),
        (lambda prefix: edit_card(prefix, key="title"), "another --json-keys"),
        (lambda prefix: Path(f"{prefix}.json").write_text("{}"), "no complete data card"),
        (lambda prefix: Path(f"{prefix}.words").unlink(), r"two.* does not go with .*one.* no .words"),
        (lambda prefix: Path(f"{prefix}.bin").write_bytes(b"ab"), "truncated"),
        (lambda prefix: Path(f"{prefix}.idx").unlink(), "no dataset"),
        (lambda prefix: edit_card(prefix, files=[]), "sources does not fit"),
    ],
)
def test_datasets_that_do_not_go_together(
    dataset: Path, tmp_path: Path, damage: Callable[[str], None], message: str
) -> None:
    for name in ("one", "two"):
        shutil.copytree(dataset, tmp_path / name)
    prefixes = tuple(f"{tmp_path}/{name}/corpus_text_sentence" for name in ("one", "two"))
    damage(prefixes[1])
    with pytest.raises(UserError, match=message):
        merge_datasets(MergeConfig(input=prefixes, output_prefix=f"{tmp_path}/out/corpus"))
    assert not (tmp_path / "out").exists()


def test_other_dtypes_and_names(tmp_path: Path) -> None:
    for name, vocab_size in (("a", 1000), ("b", 70_000)):
        writer = IndexedWriter(f"{tmp_path}/{name}", vocab_size, words=False)
        writer.add(np.array([1, 2]), np.array([2]), np.array([1]))
        writer.finish()
    with pytest.raises(UserError, match="its tokens are int32, not uint16"):
        merge_datasets(MergeConfig(input=(str(tmp_path),), output_prefix=f"{tmp_path}/out"))
    with pytest.raises(UserError, match="twice"):
        merge_datasets(MergeConfig(input=(f"{tmp_path}/a", f"{tmp_path}/*"), output_prefix=f"{tmp_path}/out"))
    with pytest.raises(UserError, match="is one of the inputs"):
        merge_datasets(MergeConfig(input=(f"{tmp_path}/a",), output_prefix=f"{tmp_path}/a"))
    merge_datasets(MergeConfig(input=(f"{tmp_path}/a.idx",), output_prefix=f"{tmp_path}/out"))
    assert IndexedDataset(f"{tmp_path}/out").tokens.tolist() == [1, 2]
    assert not (tmp_path / "out.json").exists()
