import json
from pathlib import Path

import pytest
import torch

from tests.training.run import train


def losses(folder: Path, name: str, **flags: object) -> list[float]:
    """MLM losses of a small run, step by step."""
    metrics = folder / f"{name}.jsonl"
    train(folder, metrics_file=metrics, log_interval=1, train_iters=3, eval_iters=0, **flags)
    return [json.loads(line)["mlm_loss"] for line in metrics.read_text().splitlines()]


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_layers_give_the_same_losses_without_a_break(corpus: Path) -> None:
    torch._dynamo.utils.counters.clear()
    compiled = losses(corpus, "compiled", compile=True)
    assert compiled == pytest.approx(losses(corpus, "plain"), rel=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]
