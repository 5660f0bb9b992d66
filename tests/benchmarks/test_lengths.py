"""The benchmark of short texts: what it compares is the same but for the padding."""

from __future__ import annotations

import argparse
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron.tasks.batching import training_batches
from tests.commands import ROOT


def test_both_ways_take_equal_steps_and_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import lengths

    small = replace(lengths.MODEL, num_layers=2, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64)
    monkeypatch.setattr(lengths, "MODEL", replace(small, vocab_size=100))
    encoded = lengths.made_up(640, 0)
    static = lengths.padded(encoded)
    assert abs(encoded.lengths.mean() - 24) < 1
    assert (encoded.lengths.min(), encoded.lengths.max()) >= (5, 40)
    rows = training_batches(static.lengths, batch_size=32, seed=1, epoch=0)[0]
    short, long = encoded.batch(rows), static.batch(rows)
    assert long.tokens.shape == (32, 128)
    np.testing.assert_array_equal(long.tokens[:, : short.tokens.shape[1]], short.tokens)
    np.testing.assert_array_equal((long.tokens != lengths.PAD).sum(1), encoded.lengths_of(rows))
    assert np.ptp(encoded.lengths_of(rows)) > 10  # random batches: nobody sorts who pads to 128

    options = argparse.Namespace(batches=10, rounds=2, formats=["fp32"], learnt_batches=4, epochs=1)
    found = lengths.measure(options, tmp_path)
    assert max(found["relative_differences"].values()) < 1e-5
    assert found["formats"]["fp32"]["ratio"] > 0
    render = runpy.run_path(str(ROOT / "benchmarks" / "render.py"))
    text = "".join(render["SECTIONS"]["lengths"](found))
    assert "| like length | 1." in text and "| static 128 | 5." in text


def test_steps_that_padding_changes_stop_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import lengths

    small = replace(lengths.MODEL, num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64)
    monkeypatch.setattr(lengths, "MODEL", replace(small, vocab_size=100))
    monkeypatch.setattr(lengths, "padded", lambda encoded: replace(encoded, labels=(encoded.labels + 1) % 15))
    with pytest.raises(SystemExit, match="padding changes the step"):
        lengths.equal_steps(tmp_path, lengths.made_up(96, 0))
