"""The benchmark of the training step: what it compares is equal, and what it counts is what there is."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from megatron.config import ParallelConfig, PrecisionConfig
from megatron.model.parts import whole
from megatron.mpu.layout import Layout
from megatron.planning.activations import kept_by_part
from megatron.planning.case import Case
from tests.commands import ROOT, run


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import harness

    return harness


def test_the_command_checks_losses_measures_all_and_is_rendered(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    done = run("benchmarks/step.py", "--shapes", "small", "--rounds", 1, "--threads", 1, "--output", output)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    shape = found["shapes"]["small"]
    names = ["ours, fp32", "peer, fp32", "ours, bf16", "peer, bf16 autocast", "peer, bf16 weights"]
    assert list(shape["variants"]) == names
    losses = np.array(shape["losses"]["ours, fp32"])
    np.testing.assert_allclose(losses, shape["losses"]["peer, fp32"], rtol=2e-6)
    assert losses[-1] < losses[0]
    render = runpy.run_path(str(ROOT / "benchmarks" / "render.py"))
    text = "".join(render["SECTIONS"]["step"](found))
    assert all(f"| small: {name} |" in text for name in names)


def test_losses_that_differ_stop_the_benchmark(harness: ModuleType) -> None:
    losses = {"peer": [2.0, 1.0], "close": [2.0, 1.000001], "far": [2.0, 1.001], "broken": [2.0, float("nan")]}
    harness.check_losses(losses, "peer", {"close": 2e-6})
    for name in ("far", "broken"):
        with pytest.raises(RuntimeError, match=f"step 2: the loss of {name}"):
            harness.check_losses(losses, "peer", {"close": 2e-6, name: 1e-4})


def test_variants_take_turns_and_spreads_are_quartiles(harness: ModuleType) -> None:
    called: list[str] = []
    found = harness.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=2, calls=1)
    assert called == ["a", "a", "b", "b"] * 2  # one of each pair is not timed
    assert all(len(calls.seconds) == len(calls.faults) == 2 for calls in found.values())
    values = np.random.default_rng(1).random(9)
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(list(harness.spread(list(values)).values()), expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_account_of_memory_is_that_of_the_planner(harness: ModuleType, bf16: bool) -> None:
    from account import account
    from variants import Shape, batch_of, ours

    shape = Shape(layers=2, hidden=64, heads=2, vocabulary=1000, samples=4, sequence=32)
    batch = dataclasses.replace(batch_of(shape), lengths=np.array([32, 32, 32, 31]))
    contestant = ours(shape, batch, dropout=0.1, precision=PrecisionConfig(bf16=bf16))
    contestant.step()
    found = account(contestant)
    case = Case(
        model=shape.model(0.1),
        parallel=ParallelConfig(),
        layout=Layout(),
        on_gpu=False,
        dtype="bf16" if bf16 else "fp32",
        samples=shape.samples,
        sequence=shape.sequence,
        masked=len(batch.masked_positions),
        micro_batches=1,
    )
    kept = found["activations, layers"] + found["activations, embeddings and heads"]
    assert kept == pytest.approx(kept_by_part(case, whole(case.model)), rel=0.01)
    elements = sum(len(masters) for masters in contestant.optimizer.masters)
    assert found["weights"] == (2 if bf16 else 4) * elements
    assert found["masters"] == (4 * elements if bf16 else 0)
    assert (found["gradients"], found["moments"]) == (4 * elements, 8 * elements)
    assert 0 < found["largest temporary"] < kept
