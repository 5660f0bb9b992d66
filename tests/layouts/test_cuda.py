"""The layout table with tensors on a GPU that several processes share over gloo, and NCCL with one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron.config import PrecisionConfig
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.training.graphs import capture, use_own_stream
from tests.layouts.test_graphs import figures
from tests.layouts.test_layouts import LAYOUTS, Figures
from tests.layouts.tiny import SHAPES, Row, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def one_process() -> Figures:
    return train(ParallelContext.single("cuda"), Row(micro=8))


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_on_a_gpu_do_not_depend_on_the_layout(name: str, one_process: Figures) -> None:
    for rank in run_ranks(LAYOUTS[name].layout, train, LAYOUTS[name], device="cuda"):
        for shape, expected in one_process.items():
            for figure, values in expected.items():
                assert rank[shape][figure] == pytest.approx(values, rel=1e-5), (shape, figure)


@pytest.fixture
def own_stream() -> Iterator[None]:
    default = torch.cuda.current_stream()
    use_own_stream(torch.device("cuda"))
    yield
    torch.cuda.synchronize()
    torch.cuda.set_stream(default)


@pytest.mark.parametrize("precision", [PrecisionConfig(), PrecisionConfig(bf16=True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("own_stream")
def test_a_graph_gives_the_numbers_of_its_kernels(name: str, precision: PrecisionConfig) -> None:
    context = ParallelContext.single("cuda")
    expected = figures(context, name, precision, {})
    for step, row in zip(figures(context, name, precision, {}, capture), expected, strict=True):
        for found, value, few in zip(step, row, (0, 2, 0, 2, 0), strict=True):  # hits are counts
            assert found == pytest.approx(value, rel=2e-2 if precision.bf16 else 1e-5, abs=few * precision.bf16)


def test_nccl_with_one_process(tmp_path: Path, one_process: Figures) -> None:
    device = torch.device("cuda")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        context = ParallelContext.of_process_group(Layout(), device)
        assert context.world.broadcast_object([1]) == [1] and context.backend == "none"
        assert train(context, Row(micro=8)) == one_process
        total = torch.ones(1000, device=device)
        dist.all_reduce(total)
        assert total.sum().item() == 1000
    finally:
        dist.destroy_process_group()
