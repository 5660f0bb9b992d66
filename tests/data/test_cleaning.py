"""Cleaning flags: what stays and what is counted, the same for any number of workers and shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data import division
from megatron.data.cleaning import chinese_share
from megatron.data.duplicates import find_duplicates, find_near_duplicates, hash_texts, signatures
from megatron.data.indexed import IndexedDataset
from megatron.data.merge import MergeConfig, merge_datasets
from megatron.data.preprocess import PreprocessConfig, preprocess
from megatron.data.provenance import source_of
from megatron.data.tokenizer import SPECIAL_TOKENS
from megatron.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    characters = [chr(0x4E00 + i) for i in range(2000)]
    tokens = [*SPECIAL_TOKENS, *characters, *"汉马ABab1。版权所有"]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)), encoding="utf-8")
    return PreprocessConfig(
        input=(f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"),
        output_prefix=f"{tmp_path}/out/corpus",
        tokenizer_type="BertWordPieceCase",
        vocab_file=f"{tmp_path}/vocab.txt",
    )


def write(config: PreprocessConfig, *files: list[str]) -> None:
    for path, texts in zip(config.input, files, strict=True):
        Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def run(config: PreprocessConfig) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """File (a or b) and line of the documents that stay, and the card."""
    preprocess(config)
    prefix = f"{config.output_prefix}_text_document"
    sources = [source_of(prefix, document) for document in range(IndexedDataset(prefix).num_documents)]
    return [(Path(path).stem, line) for path, line in sources], json.loads(Path(f"{prefix}.json").read_text())


def random_texts(count: int, length: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(chr(0x4E00 + c) for c in rng.integers(0, 2000, length)) for _ in range(count)]


def test_characters(config: PreprocessConfig) -> None:
    pytest.importorskip("opencc")
    write(config, ["漢馬", "Ａ ｂ １"], ["汉马"])
    _, card = run(config)
    assert card["unknown_tokens"] == 5
    _, card = run(replace(config, simplify=True, normalize="nfkc"))
    assert card["unknown_tokens"] == 0
    prefix = f"{config.output_prefix}_text_document"
    dataset = IndexedDataset(prefix)
    assert dataset.sentence(0).tolist() == dataset.sentence(2).tolist()


def test_chinese_share(config: PreprocessConfig) -> None:
    assert chinese_share("一二 ab\n") == 0.5
    assert chinese_share(" ") == 1.0
    write(config, ["一二ab", "abc一", "abcd"], ["一"])
    kept, card = run(replace(config, min_chinese_share=0.5))
    assert kept == [("a", 1), ("b", 1)]
    assert card["removed"]["not_chinese_documents"] == 2


def test_duplicates(config: PreprocessConfig) -> None:
    write(config, ["一", "二", " 一\n", "", "ab"], ["三", "二", "四", "ab", "ab"])
    kept, card = run(replace(config, drop_duplicates=True, min_chinese_share=0.1))
    assert kept == [("a", 1), ("a", 2), ("b", 1), ("b", 3)]
    assert card["removed"] == {
        "not_chinese_documents": 3,
        "duplicate_documents": 2,
        "near_duplicate_documents": 0,
        "boilerplate_lines": 0,
    }
    assert card["empty_documents"] == 1


def test_duplicates_are_the_equal_ones() -> None:
    rng = np.random.default_rng(1)
    texts = [str(number) for number in rng.integers(0, 500, 2000)]
    seen: set[str] = set()
    expected = [text in seen or seen.add(text) is not None for text in texts]
    assert find_duplicates(hash_texts(texts)).tolist() == expected
    assert find_duplicates(hash_texts([])).tolist() == []


def test_near_duplicates() -> None:
    pytest.importorskip("rensa")
    texts = random_texts(300, 200, 0)
    near = [f"{text[:190]} 新的结尾" for text in texts[:100]]
    far = [text[:80] + other for text, other in zip(texts, random_texts(100, 120, 1), strict=False)]
    short = ["一", "一 ", "二"]
    rows = signatures([*texts, *near, *far, *short])
    found = find_near_duplicates(rows, 0.8)
    assert np.flatnonzero(found).tolist() == [*range(300, 400), 501]
    # A signature depends on its own text alone.
    assert np.array_equal(signatures(texts[7:9]), rows[7:9])
    assert find_near_duplicates(signatures([]), 0.8).tolist() == []


def test_signatures_estimate_the_jaccard_similarity() -> None:
    pytest.importorskip("rensa")
    texts = random_texts(200, 100, 2)
    others = [text[: 30 + i % 60] + other for i, (text, other) in enumerate(zip(texts, random_texts(200, 50, 3)))]  # noqa: B905
    runs = [[{text[i : i + 5] for i in range(len(text) - 4)} for text in part] for part in (texts, others)]
    exact = np.array([len(a & b) / len(a | b) for a, b in zip(*runs, strict=True)])
    estimate = (signatures(texts) == signatures(others)).mean(axis=1)
    assert abs((estimate - exact).mean()) < 0.01
    assert np.abs(estimate - exact).max() < 0.2


def test_boilerplate(config: PreprocessConfig) -> None:
    write(
        config,
        ["一\n版权所有\n二", "版权所有 ", "三\n版权所有\n版权所有"],
        ["四\n版权所有", "版权所有", "五\n六", "六"],
    )
    kept, card = run(replace(config, drop_boilerplate=3))
    assert kept == [("a", 1), ("a", 3), ("b", 1), ("b", 3), ("b", 4)]
    assert card["removed"]["boilerplate_lines"] == 6
    assert card["empty_documents"] == 2
    assert card["tokens"] == 7
    _, card = run(replace(config, drop_boilerplate=2))
    assert card["removed"]["boilerplate_lines"] == 8


def test_workers_shards_and_interruptions_do_not_matter(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rensa")
    texts = random_texts(150, 60, 4)
    texts = [f"{text}\n版权所有" for text in texts]
    write(config, texts[:100] + texts[:30], ["{", *texts[50:], *[f"{text[:58]}一" for text in texts[:40]]])
    config = replace(
        config, drop_duplicates=True, drop_near_duplicates=0.7, drop_boilerplate=5, normalize="nfc", workers=2
    )
    kept, card = run(config)
    assert card["removed"]["duplicate_documents"] == 30 + 50
    assert card["removed"]["near_duplicate_documents"] == 40
    assert card["removed"]["boilerplate_lines"] == len(kept) - 1
    one = {path.name: path.read_bytes() for path in Path(config.output_prefix).parent.iterdir()}

    monkeypatch.setattr(division, "SMALLEST_SHARD", 1 << 12)
    # Stopped in the second pass: what it has written is gone, the survey stays.
    original = Path(config.output_prefix).parent
    original.rename(original.with_name("one"))
    monkeypatch.setattr("megatron.data.preprocess.make_shard_encoder", broken_encoder)
    with pytest.raises(UserError, match="broken; no output was written"):
        preprocess(config)
    monkeypatch.undo()
    monkeypatch.setattr(division, "SMALLEST_SHARD", 1 << 12)
    preprocess(replace(config, workers=1))
    assert {path.name: path.read_bytes() for path in original.iterdir()} == one


def test_parts_are_surveyed_alone(config: PreprocessConfig) -> None:
    write(config, ["一", "一"], ["一", "二"])
    for part in ("1/2", "2/2"):
        preprocess(replace(config, drop_duplicates=True, shard=part))
    folder = Path(config.output_prefix).parent
    merge_datasets(MergeConfig(input=(str(folder),), output_prefix=f"{folder}/merged"))
    card = json.loads((folder / "merged.json").read_text())
    assert card["documents"] == 3
    assert card["removed"]["duplicate_documents"] == 1
    assert card["surveyed"] == "each of 2 parts"
    assert "part" not in card


def broken_encoder(*arguments: object) -> None:
    raise UserError("broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_chinese_share": 1.5}, "--min-chinese-share must be from 0 to 1"),
        ({"drop_near_duplicates": 0.0}, "--drop-near-duplicates must be above 0"),
        ({"drop_boilerplate": 1}, "--drop-boilerplate must be at least 2"),
    ],
)
def test_wrong_options(config: PreprocessConfig, changes: dict[str, Any], message: str) -> None:
    write(config, ["一"], ["二"])
    with pytest.raises(UserError, match=message):
        preprocess(replace(config, **changes))


def test_missing_packages(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    write(config, ["一"], ["二"])
    for package, changes in (("opencc", {"simplify": True}), ("rensa", {"drop_near_duplicates": 0.8})):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
            preprocess(replace(config, **changes))  # type: ignore[arg-type]
        assert not Path(config.output_prefix).parent.exists()
