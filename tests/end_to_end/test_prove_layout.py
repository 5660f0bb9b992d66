"""tools/prove_layout.py as typed, and that it can find a fault."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from subprocess import CompletedProcess

from megatron.mpu.context import ParallelContext
from megatron.mpu.group import Group
from megatron.mpu.layout import Layout
from megatron.training.proof import Figures, compare, train_some
from tests.commands import run
from tests.layouts.tiny import SHAPES
from tests.ranks import run_ranks
from tests.training.corpus import write_corpus
from tests.training.run import config_of


def prove(folder: Path, *flags: str, processes: int) -> CompletedProcess[str]:
    write_corpus(folder)
    argv = [
        "--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4", "--max-position-embeddings", "64",
        "--seq-length", "48", "--micro-batch-size", "2", "--global-batch-size", "8", "--split", "100,0,0",
        "--data-path", str(folder / "corpus_text_sentence"), "--vocab-file", str(folder / "vocab.txt"), *flags,
    ]  # fmt: skip
    return run("tools/prove_layout.py", *argv, processes=processes, seconds=200)


def test_a_layout_is_proved(tmp_path: Path) -> None:
    layout = ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2", "--sequence-parallel")
    result = prove(tmp_path, *layout, "--steps", "3", processes=4)
    assert result.returncode == 0, result.stderr
    assert "4 layers of width 32, 3 steps" in result.stdout  # heads of 16 became heads of 8
    assert result.stdout.count(" equal (") == 5
    assert "verdict: the layout gives the numbers of one process" in result.stdout


def test_one_process_proves_nothing(tmp_path: Path) -> None:
    result = prove(tmp_path, processes=1)
    assert result.returncode == 2
    assert "torchrun --nproc-per-node" in result.stderr and "Traceback" not in result.stderr


def test_impossible_layouts_are_refused(tmp_path: Path) -> None:
    result = prove(tmp_path, "--tensor-model-parallel-size", "3", processes=2)
    assert result.returncode != 0
    assert "--tensor-model-parallel-size 3 does not divide --num-attention-heads 4" in result.stderr


def broken(context: ParallelContext, folder: Path) -> Figures:
    """A pipeline that forgets to sum the gradients of the tied table."""
    from megatron.data.batches import open_splits
    from megatron.data.tokenizer import load_tokenizer

    config = config_of(folder, pipeline_model_parallel_size=2, max_position_embeddings=64, split="100,0,0")
    tokenizer = load_tokenizer("BertWordPieceLowerCase", str(folder / "vocab.txt"))
    shape = dataclasses.replace(SHAPES["bert"], max_position_embeddings=64, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config.resolved(world_size=2), model=shape)
    data = dataclasses.replace(config.data, data_cache_path=str(folder / f"cache{context.rank}"))
    splits = open_splits(data, seed=1, tokenizer=tokenizer)
    wrong = dataclasses.replace(context, embedding=Group(name="embedding", rank=context.embedding.rank))
    found = train_some(config, splits["train"], 2, wrong)
    if not context.is_main:
        return found
    alone = dataclasses.replace(config, parallel=type(config.parallel)())
    return compare(found, train_some(alone, splits["train"], 2, ParallelContext.single()))


def test_a_fault_is_found(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    comparisons = {c.name: c for c in run_ranks(Layout(pipeline=2), broken, tmp_path)[0]}
    assert comparisons["MLM loss"].equal is False
    gradients = comparisons["gradients of step 1"]
    assert not gradients.equal and gradients.where == "embeddings.word_embeddings.weight"


def test_figures_that_are_not_numbers_are_not_equal() -> None:
    nan = float("nan")
    import torch

    same = Figures(losses={"MLM loss": [nan]}, gradients={"a": torch.ones(1)}, weights={"a": torch.tensor([nan])})
    assert [c.equal for c in compare(same, same)] == [False, True, False]
