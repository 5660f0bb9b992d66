"""The layout table with tensors on a GPU that several processes share over gloo, and NCCL with one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from tests.layouts.test_layouts import LAYOUTS, Figures
from tests.layouts.tiny import Row, train
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
