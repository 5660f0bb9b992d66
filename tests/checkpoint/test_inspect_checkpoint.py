"""tools/inspect_checkpoint.py as typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.checkpoint import json_bytes
from megatron.checkpoint.huggingface import from_huggingface, to_huggingface
from megatron.checkpoint.megatron_lm import to_megatron_lm
from megatron.checkpoint.store import Pruning, begin_save, finish_save, write_own
from megatron.config import ModelConfig, to_dict
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece
from tests.checkpoint.hub import hub_model, save_hub
from tests.commands import ROOT
from tools import inspect_checkpoint

SINGLE = ParallelContext.single()


def inspect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[str]]:
    """Exit code and printed lines."""
    monkeypatch.setattr(sys, "argv", ["inspect_checkpoint.py", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        inspect_checkpoint.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().out.splitlines()


def save_by_two(folder: Path, *, last: float = 3.0) -> Path:
    """A checkpoint of one weight and its moment, half of each by one of two ranks."""
    values = torch.tensor([[0.0, 1.0], [2.0, last]])
    temporary = begin_save(folder, 12, SINGLE)
    written = {}
    for rank in range(2):
        row = {"global_shape": (2, 2), "offsets": (rank, 0), "tensor": values[rank : rank + 1]}
        weight, moment = Piece(name="w", **row), Piece(name="exp_avg.w", **row)  # type: ignore[arg-type]
        written |= write_own(temporary, [weight], [moment], rank)[0]
    parallel = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1, "use_distributed_optimizer": True}
    files = {
        "config.json": json_bytes({"model": to_dict(ModelConfig(hidden_size=2)), "parallel": parallel}),
        "train_state.json": json_bytes({"step": 12, "consumed_samples": 96}),
    }
    return finish_save(temporary, written, "", files=files, context=SINGLE, pruning=Pruning())


def test_a_checkpoint_of_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_by_two(tmp_path)
    code, lines = inspect(monkeypatch, capsys, tmp_path, "--norms")
    assert code == 0
    assert lines[0] == f"{tmp_path / 'iter_0000012'}: a checkpoint of this engine"
    for fact in (
        "  position       step 12, 96 samples",
        "  saved by       2 processes that held parts (parallel: tensor 2, pipeline 1, ZeRO-1)",
        "  files          2 of weights, 2 of the optimizer, 6 in all",
        "  checksums      hold",
        "  tensors        2 with 8 elements",
        "  w          F32  [2, 2] in 2 parts  norm 3.74166  max 3",
        "  exp_avg.w  F32  [2, 2] in 2 parts  norm 3.74166  max 3",
    ):
        assert fact in lines


def test_damage_is_named_and_the_rest_still_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_by_two(tmp_path)
    content = bytearray((folder / "model-00001.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model-00001.safetensors").write_bytes(content)
    code, lines = inspect(monkeypatch, capsys, folder)
    assert code == 1
    assert "  checksums      do not hold" in lines
    assert "  w          F32  [2, 2] in 2 parts" in lines
    assert lines[-1].startswith(f"DAMAGED: {folder / 'model-00001.safetensors'} is damaged")
    code, lines = inspect(monkeypatch, capsys, folder, "--no-verify")
    assert (code, "  checksums      not read" in lines) == (0, True)
    (folder / "model-00001.safetensors").write_bytes(content[:-3])
    code, lines = inspect(monkeypatch, capsys, folder)
    assert (code, len(lines)) == (1, 3)
    assert "bytes instead of" in lines[-1]
    (folder / "manifest.json").unlink()
    code, lines = inspect(monkeypatch, capsys, folder)
    assert code == 1
    assert "manifest.json cannot be read" in lines[-1]


def test_two_checkpoints_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = save_by_two(tmp_path / "a"), save_by_two(tmp_path / "b", last=3.5)
    code, lines = inspect(monkeypatch, capsys, a, tmp_path / "a")
    assert (code, lines) == (0, [f"{a} and {a} hold the same model"])
    code, lines = inspect(monkeypatch, capsys, a, b)
    assert code == 1
    assert lines == [f"{name}: differs by up to 0.5 in 1 of 4 elements" for name in ("exp_avg.w", "w")]
    assert inspect(monkeypatch, capsys, a, b, "--tolerance", 0.5)[0] == 0
    nan = save_by_two(tmp_path / "nan", last=float("nan"))
    code, lines = inspect(monkeypatch, capsys, a, nan, "--tolerance", 9)
    assert (code, lines[0]) == (1, "exp_avg.w: differs by up to nan in 1 of 4 elements")
    assert inspect(monkeypatch, capsys, nan, nan)[0] == 0


def test_kinds_are_told_apart_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hub_model("megatron-bert")
    hub = save_hub(model, tmp_path / "hub")
    from_huggingface(hub, tmp_path / "ours")
    to_megatron_lm(
        tmp_path / "ours", tmp_path / "megatron", tensor_parallel=1, stages=2, divisible_by=8, naming="classic"
    )
    kinds = {
        "hub": "a Hugging Face folder",
        "ours": "a checkpoint of this engine",
        "megatron": "a checkpoint of Megatron-LM",
    }
    for name, kind in kinds.items():
        code, lines = inspect(monkeypatch, capsys, tmp_path / name)
        assert (code, lines[0].split(": ")[1]) == (0, kind)
        for other in kinds:
            assert inspect(monkeypatch, capsys, tmp_path / name, tmp_path / other)[0] == 0
    assert "  saved by       tensor 1, pipeline 2: 2 files" in lines
    model.bert.encoder.ln.bias.data[3] += 1
    model.config.layer_norm_eps = 1e-6
    other = save_hub(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    del weights["cls.seq_relationship.bias"]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    code, lines = inspect(monkeypatch, capsys, tmp_path / "ours", other)
    assert code == 1
    assert lines[0] == "model: layernorm_epsilon is 1e-05, and 1e-06"
    assert lines[1] == f"only in {tmp_path / 'ours' / 'iter_0000000'}: binary_head.bias, binary_head.weight"
    assert lines[-1] == "encoder.final_layernorm.bias: differs by up to 1 in 1 of 24 elements"
    to_huggingface(tmp_path / "ours", tmp_path / "exported")
    assert inspect(monkeypatch, capsys, hub, tmp_path / "exported") == (0, [
        f"{hub} and {tmp_path / 'exported'} hold the same model"
    ])  # fmt: skip


def test_what_is_no_checkpoint_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inspect_checkpoint.py", str(tmp_path)])
    with pytest.raises(UserError, match="holds no checkpoint"):
        inspect_checkpoint.main()


def test_as_typed_into_a_pipe_that_closes(tmp_path: Path) -> None:
    save_by_two(tmp_path)
    command = f"{sys.executable} tools/inspect_checkpoint.py {tmp_path} --no-verify | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
