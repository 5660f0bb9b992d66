"""What records say of throughput: model FLOPs of real tokens, MFU, memory, and their fields in every sink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.config import PretrainConfig, with_vocabulary
from megatron.data.tokenizer import load_tokenizer
from megatron.planning.flops import pretraining_flops
from megatron.training.launch import open_data
from megatron.training.throughput import Peak, data_sheet_flops, peak_memory
from tests.training.corpus import records
from tests.training.run import config_of, train

CPU = torch.device("cpu")


def flops_of_batches(config: PretrainConfig) -> list[float]:
    """Model FLOPs of every step, from the samples themselves."""
    config = config.resolved(world_size=1)
    tokenizer = load_tokenizer(config.data.tokenizer_type, config.data.vocab_file, None)
    model, size = with_vocabulary(config.model, tokenizer.vocab_size), config.training.global_batch_size
    found = []
    for step in range(config.training.train_iters or 0):
        batch = open_data(config, tokenizer)["train"].assemble(step * size, size)
        lengths = (batch.tokens != tokenizer.pad_id).sum(1)
        assert lengths.min() < batch.tokens.shape[1]  # there is padding
        found.append(
            pretraining_flops(
                model,
                tokens=lengths.sum(),
                squared_lengths=np.square(lengths).sum(),
                masked=len(batch.masked_positions),
                samples=size,
            )
        )
    return found


@pytest.mark.parametrize("flags", [{}, {"bf16": True, "bert_no_binary_head": True, "micro_batch_size": 2}])
def test_model_flops_are_of_real_tokens_and_masks(
    corpus: Path, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, **flags, train_iters=4, tensorboard_dir=corpus / "events")
    rows, out = records(corpus), capsys.readouterr().out
    expected = flops_of_batches(config_of(corpus, **flags, train_iters=4))
    assert [1e12 * row["model_tflops_per_second"] * row["step_seconds"] for row in rows] == pytest.approx(expected)
    (peak,) = {round(row["model_tflops_per_second"] / row["mfu"], 9) for row in rows}
    (line,) = [line for line in out.splitlines() if line.startswith("peak, which MFU is relative to: ")]
    said = line.split(": ", 1)[1].split(" TFLOP/s, measured: products of 1024 x 1024 matrices in ")
    assert float(said[0].replace(",", "")) == pytest.approx(peak, rel=1e-2)
    assert said[1] == ("bf16" if "bf16" in flags else "fp32")
    # Linux counts a process's pages in batches: a later reading of one peak may be a few pages lower.
    assert 0 < rows[-1]["peak_memory_bytes"] <= 1.001 * peak_memory(CPU)[0]
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert all(f"{row['tokens_per_second']:.0f} tokens/s" in line for row, line in zip(rows, steps, strict=True))
    assert all(f"(MFU {row['mfu']:.1%})" in line for row, line in zip(rows, steps, strict=True))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(corpus / "events"))
    events.Reload()
    tags = {"mfu": "mfu", "model-tflops": "model_tflops_per_second", "loader-wait": "loader_wait_seconds"}
    for tag, field in tags.items():
        assert [e.value for e in events.Scalars(tag)] == pytest.approx([row[field] for row in rows])


def test_a_window_counts_all_of_its_steps_and_a_skipped_one(corpus: Path) -> None:
    """Throughput is of work that was done, whether a step was taken or not."""
    flags = {"train_iters": 4, "log_interval": 4, "max_skipped_steps": 9}
    train(corpus, **flags, lr=1e30, clip_grad=0)  # all weights overflow after the first steps
    (row,) = records(corpus)
    assert row["skipped_steps"] > 0
    flops = 1e12 * row["model_tflops_per_second"] * row["step_seconds"] * 4
    assert flops == pytest.approx(sum(flops_of_batches(config_of(corpus, **flags))))


def test_memory_is_the_largest_so_far() -> None:
    block = torch.ones(60_000_000)
    size = block.nbytes
    del block
    assert size <= peak_memory(CPU)[0] < 2**40


def test_the_peak_of_known_gpus_is_in_their_data_sheet() -> None:
    assert data_sheet_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert data_sheet_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert data_sheet_flops("NVIDIA H200", "fp16") == 989e12
    assert data_sheet_flops("NVIDIA H100 PCIe", "bf16") == 0  # the same chip at another clock
    assert "records have no MFU" in Peak(flops=None, source="not known of NVIDIA H100 PCIe").describe()
