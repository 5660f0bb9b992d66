"""The benchmark of time to quality: both sides are the same model on the same samples; the masks of the peer."""

from __future__ import annotations

import gzip
import json
import runpy
from dataclasses import replace
from pathlib import Path

import jieba
import numpy as np
import pytest
import torch

from megatron.data.tokenizer import Tokenizer
from megatron.presets import PRESETS
from tests.commands import ROOT

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我来到北京清华大学。", "play", "##ing", "bert", "##s")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def _tokenizer() -> Tokenizer:
    return Tokenizer(
        kind="BertWordPieceLowerCase", tokens=TOKENS, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4,
        random_ids=np.arange(5, len(TOKENS), dtype=np.int32), encode_batch=lambda texts: [],
    )  # fmt: skip


def _ids(*names: str) -> np.ndarray:
    return np.array([TOKENS.index(name) for name in names])


def test_words_are_those_of_jieba() -> None:
    from quality_peer import _words

    text = "我来到北京清华大学。"
    ids = _ids("[CLS]", *text, "[SEP]", "play", "##ing", "bert", "##s", "北", "[SEP]")
    words = _words(ids, _tokenizer())
    expected, place = [], 1
    for word in jieba.lcut(text):
        expected.append(list(range(place, place + len(word))))
        place += len(word)
    assert words == [*expected, [12, 13], [14, 15], [16]]


def test_the_collator_masks_whole_words_and_one_token_of_seven() -> None:
    from quality_peer import Sample, collator

    count, words = 4000, [[1, 2], [3], [4, 5, 6], [7], [8, 9], [10], [11, 12], [13, 14], [15, 16], [17, 18], [19, 20]]
    tokens = torch.full((22,), 7)
    tokens[0], tokens[21] = 2, 3
    samples = [Sample(tokens, torch.zeros(22, dtype=torch.long), words, 0)] * count
    batch = collator(_tokenizer(), 1)(samples)
    masked = batch["labels"] != -100
    assert not masked[:, [0, 21]].any()
    for word in words:
        assert (masked[:, word].all(1) == masked[:, word].any(1)).all()
    assert 2.6 < masked.sum(1).float().mean() <= 3  # 15 % of 22
    shown = batch["input_ids"][masked]
    assert (batch["input_ids"][~masked] == tokens.expand(count, -1)[~masked]).all()
    assert (batch["labels"][masked] == 7).all()
    assert (shown == 4).float().mean() == pytest.approx(0.8 + 0.1 / len(TOKENS), abs=0.02)
    assert (shown == 7).float().mean() == pytest.approx(0.1 + 0.1 / len(TOKENS), abs=0.02)


def test_both_sides_race_from_the_same_loss_over_the_same_samples(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quality
    from curves import draw
    from quality_peer import unmasked_samples

    from tests.data.made_up import restored

    with gzip.open(shared_data / "corpus" / "reviews_books.jsonl.gz", "rt", encoding="utf-8") as file:
        (tmp_path / "text.jsonl").write_text("".join(line for line, _ in zip(file, range(400), strict=False)))
    shape = replace(PRESETS["roberta-tiny-clue"], num_layers=1, hidden_size=24, num_attention_heads=2)
    shape = replace(shape, ffn_hidden_size=48, vocab_size=600, max_position_embeddings=64)
    monkeypatch.setitem(PRESETS, "roberta-tiny-clue", shape)
    for name, value in {"BATCH": 4, "SEQUENCE": 32, "EVALUATED": 8}.items():
        monkeypatch.setattr(quality, name, value)
    prefix, vocabulary = quality.prepare(tmp_path / "text.jsonl", tmp_path)
    tokenizer = quality.load_tokenizer(quality.TOKENIZER, str(vocabulary))
    config = quality.configuration(prefix, vocabulary, tokenizer, 4, 1, False)
    split = quality.open_splits(config.data, seed=1, tokenizer=tokenizer)["train"]
    batch = split.assemble(0, 16)
    for sample, row, length in zip(unmasked_samples(split, 16, tokenizer), restored(batch), batch.lengths, strict=True):
        np.testing.assert_array_equal(sample.tokens, row[:length])
        special = np.isin(row[:length], [tokenizer.cls_id, tokenizer.sep_id])
        assert sorted(sum(sample.words, [])) == np.flatnonzero(~special).tolist()

    options = quality.argparse.Namespace(
        input=tmp_path / "text.jsonl", folder=tmp_path, steps=4, interval=2, seeds=[1, 2], formats=["bf16", "fp32"]
    )
    found = json.loads(json.dumps(quality.measure(options)))  # stops where the first losses differ
    assert [(run["name"], run["seed"]) for run in found["runs"]] == [
        ("Hugging Face, bf16 autocast", 1), ("ours, bf16", 1),
        ("Hugging Face, bf16 autocast", 2), ("ours, bf16", 2),
        ("Hugging Face, fp32", 1), ("ours, fp32", 1),
    ]  # fmt: skip
    assert all([point[0] for point in run["points"]] == [0, 2, 4] for run in found["runs"])
    assert found["agreement"]["bf16"]["noise"] > 0 and "fp32" not in found["agreement"]
    text = "".join(runpy.run_path(str(ROOT / "benchmarks" / "render.py"))["SECTIONS"]["quality"](found))
    assert "| ours, bf16 |" in text
    pictures = [tmp_path / "figures" / name for name in ("a.svg", "b.svg")]
    for picture in pictures:
        draw(found, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert "Hugging Face, fp32" in pictures[0].read_text()


def test_gap_and_noise_by_hand() -> None:
    import quality

    def runner(name: str, seed: int, losses: list[float]) -> quality.Runner:
        points = [(step, 0.0, loss) for step, loss in enumerate(losses)]
        return quality.Runner(name=name, seed=seed, advance=print, evaluate=float, points=points)

    running = [
        runner("ours, bf16", 1, [9.0, 9.0, 9.0, 9.0, 9.0, 5.0, 4.0]),
        runner("ours, bf16", 2, [9.0, 9.0, 9.0, 9.0, 9.0, 5.2, 4.0]),
        runner("Hugging Face, bf16 autocast", 1, [8.0, 8.0, 8.0, 8.0, 8.0, 5.0, 4.1]),
        runner("Hugging Face, bf16 autocast", 2, [8.0, 8.0, 8.0, 8.0, 8.0, 5.0, 4.3]),
        runner("ours, fp32", 1, [1.0] * 7),
    ]
    found = quality.comparison(running, True)
    assert found == pytest.approx({"gap": (0.1 + 0.2) / 2, "noise": 0.1})
    assert quality.comparison(running, False) is None


def test_models_that_differ_stop_the_benchmark() -> None:
    import quality

    def pair(loss: float, expected: float, fmt: str) -> list[quality.Runner]:
        return [
            quality.Runner(name=f"{side}, {fmt}", seed=1, advance=print, evaluate=float, points=[(0, 0.0, value)])
            for side, value in (("Hugging Face", expected), ("ours", loss))
        ]

    quality.check_start([*pair(9.001, 9.0, "bf16"), *pair(9.00001, 9.0, "fp32")])
    with pytest.raises(SystemExit, match="ours, fp32 is 9.0010000"):
        quality.check_start([*pair(9.0, 9.0, "bf16"), *pair(9.001, 9.0, "fp32")])
    with pytest.raises(SystemExit, match="ours, bf16 is nan"):
        quality.check_start(pair(float("nan"), 9.0, "bf16"))
