"""Pairs of several corpora, each in its own form, and tasks that start from a pair model."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron.checkpoint import find_checkpoint
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.sets.pairs import PAIRS
from tests.tasks.tiny import CHARACTERS, metrics, write_checkpoint

SINGLE = ParallelContext.single()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "afqmc/train.json",
            ['{"sentence1":"天地","sentence2":"山水","label":"1"}', '{"sentence1":"日","sentence2":"月","label":"0"}'],
        ),
        (
            "bustm/train_0.json",
            [
                '{"id":3,"sentence1":"天地","sentence2":"山水","label":"1"}\r',
                '{"id":4,"sentence1":"日","sentence2":"月","label":"0"}\r',
            ],
        ),
        ("lcqmc/train.tsv", ["天地\t山水\t1", "日\t月\t0"]),
        ("bq/train.data", ["天地\t山水\t1", "日\t月\t0"]),
        ("copy/train.tsv", ["text_a\ttext_b\tlabel", "天地\t山水\t1", "日\t月\t0"]),
        ("other/train.tsv", ["label\tsentence1\tsentence2", "1\t天地\t山水", "0\t日\t月"]),
        (
            "qqp/train.tsv",
            ["id\tqid1\tqid2\tquestion1\tquestion2\tlabel", "7\t1\t2\t天地\t山水\t1", "8\t3\t4\t日\t月\t0"],
        ),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_corpora_in_their_own_forms(name: str, lines: list[str], compressed: bool, tmp_path: Path) -> None:
    content = "".join(line + "\n" for line in lines).encode()
    path = tmp_path / (name + ".gz" * compressed)
    path.parent.mkdir()
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = PAIRS.read(PAIRS, path, "train")
    assert [(example.texts, example.label) for example in found] == [(("天地", "山水"), 1), (("日", "月"), 0)]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "a.tsv",
            ["天地\t山水\t1", "日\t月\t2"],
            "line 2: label '2' is none of the 2 of pairs: 0, 1",
        ),
        ("a.tsv", ["天地\t山水\t1", "日\t0"], "line 2: 2 columns, but"),
        ("a.tsv", ["text_a\tlabel", "日\t0"], "line 2: no two texts; it has text_a, label; the texts must be named"),
        ("a.json", ['{"sentence1":"日","label":"0"}'], "line 1: no two texts; it has sentence1, label"),
        ("a.json", ['{"sentence1":"日","sentence2":3,"label":"0"}'], "line 1: 'sentence2' must be a string, not 3"),
        (
            "a.json",
            ['{"sentence1":"日","sentence2":"月","label":"entailment"}'],
            "line 1: label 'entailment' is none of the 2 of pairs",
        ),
    ],
)
def test_bad_rows_are_named(name: str, lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(UserError) as error:
        PAIRS.read(PAIRS, tmp_path / name, "dev")
    assert str(error.value).startswith(str(tmp_path / name)) and message in str(error.value)


def test_afqmc_starts_from_a_pair_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pair model's encoder and pooler, and a head of its own."""
    for corpus in ("AFQMC", "LCQMC"):
        (tmp_path / corpus).mkdir()
        for part, count in (("train", 40), ("dev", 12)):
            rows = [(CHARACTERS[n % 10], CHARACTERS[n % 7 :][:5], str(n % 2)) for n in range(count)]
            if corpus == "LCQMC":
                text = "".join("\t".join(row) + "\n" for row in rows)
            else:
                named = [dict(zip(("sentence1", "sentence2", "label"), row, strict=True)) for row in rows]
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named)
            (tmp_path / corpus / f"{part}.{'tsv' if corpus == 'LCQMC' else 'json'}").write_text(text, encoding="utf-8")
    config = FinetuneConfig(
        task=TaskConfig(
            task="pairs",
            data_dir=str(tmp_path),
            train_file=("AFQMC/train.json", "LCQMC/train.tsv"),
            dev_file=("AFQMC/dev.json", str(tmp_path / "LCQMC" / "dev.tsv")),
        ),
        source=ModelSourceConfig(
            pretrained_checkpoint=str(write_checkpoint(tmp_path / "checkpoint")), output_dir=str(tmp_path / "pairs")
        ),
        tuning=TuningConfig(epochs=1, global_batch_size=8, lr=3e-3, seq_length=32),
    )
    finetune(config, SINGLE)
    assert metrics(tmp_path / "pairs")[-1]["consumed_samples"] == 80
    assert json.loads((tmp_path / "pairs" / "dev_metrics.json").read_text())["examples"] == 24

    afqmc = dataclasses.replace(
        config,
        task=TaskConfig(task="afqmc", data_dir=str(tmp_path / "AFQMC")),
        source=ModelSourceConfig(
            pretrained_checkpoint=str(tmp_path / "pairs" / "best"), output_dir=str(tmp_path / "afqmc")
        ),
        # a step too small to change anything: the kept weights are those that it started from
        tuning=TuningConfig(epochs=1, global_batch_size=40, lr=1e-12, seq_length=32),
    )
    capsys.readouterr()
    finetune(afqmc, SINGLE)
    assert "pairs/best; random: task_head.weight, task_head.bias\n" in capsys.readouterr().out
    weights = []
    for run in ("pairs", "afqmc"):
        best = find_checkpoint(tmp_path / run / "best", context=SINGLE)
        assert best is not None
        weights.append(load_file(best / "model-00000.safetensors"))
    pairs, started = weights
    for name, tensor in pairs.items():
        same = torch.allclose(tensor, started[name], atol=1e-9)
        assert same == (name != "task_head.weight") or name == "task_head.bias", name
    assert any(name.startswith("pooler.") for name in pairs)
