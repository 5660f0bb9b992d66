"""The command under torchrun: the numbers of one process."""

import json
from pathlib import Path

import pytest

from tests.commands import finish
from tests.training.corpus import arguments, command, records
from tests.training.run import train


@pytest.mark.parametrize("architecture", ["megatron-bert", "bert"])
def test_two_processes_give_the_numbers_of_one(corpus: Path, architecture: str) -> None:
    flags = {"architecture": architecture, "eval_interval": 3, "eval_iters": 3}
    train(corpus, **flags, metrics_file=corpus / "one.jsonl")
    argv = arguments(corpus, **flags, micro_batch_size=2, distributed_backend="gloo", distributed_timeout_minutes=2)
    code, _, err = finish(command(argv, processes=2))
    assert code == 0, err
    for split in ("train", "valid"):
        one, two = records(corpus, split, "one.jsonl"), records(corpus, split)
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            assert a["step"] == b["step"]
            for name in ("mlm_loss", "sop_loss", "mlm_accuracy", "sop_accuracy"):
                assert b[name] == pytest.approx(a[name], rel=1e-5), (split, name)


def test_a_checkpoint_of_two_processes_continues_in_one(corpus: Path) -> None:
    train(corpus, train_iters=8, metrics_file=corpus / "one.jsonl")
    argv = arguments(corpus, train_iters=8, save=corpus / "save", exit_interval=4)
    code, _, err = finish(command(argv, processes=2))
    assert code == 0, err
    train(corpus, train_iters=8, save=corpus / "save")
    one, both = records(corpus, name="one.jsonl"), records(corpus)
    assert [row["step"] for row in both] == list(range(1, 9))
    for a, b in zip(one, both, strict=True):
        assert b["mlm_loss"] == pytest.approx(a["mlm_loss"], rel=1e-5)


def test_the_resolved_configuration_is_printed_and_saved(corpus: Path) -> None:
    code, out, err = finish(command(arguments(corpus, train_iters=1, save=corpus / "save")))
    assert code == 0, err
    assert "ffn_hidden_size=128" in out and "samples are" in out and "epochs" in out
    saved = json.loads((corpus / "save" / "iter_0000001" / "config.json").read_text())
    assert saved["model"]["ffn_hidden_size"] == 128 and saved["model"]["vocab_size"] == 65
