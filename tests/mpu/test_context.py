import pytest
import torch

from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from tests.ranks import run_ranks


def collectives(context: ParallelContext) -> dict[str, object]:
    mine = torch.tensor([float(context.rank)])
    return {
        "data": context.data.all_reduce_(mine.clone()).item(),
        "tensor": context.tensor.all_reduce_(mine.clone(), "max").item(),
        "gather": context.world.all_gather(mine, 0).tolist(),
        "object": context.world.broadcast_object({"from": context.rank}, source=1),
        "any": (context.world.any(context.rank == 2, context.device), context.world.any(False, context.device)),
    }


def test_groups_reach_the_right_ranks() -> None:
    for rank, result in enumerate(run_ranks(Layout(data=2, tensor=2), collectives)):
        pair = rank // 2 * 2
        assert result == {
            "data": float(rank % 2 + rank % 2 + 2),
            "tensor": float(pair + 1),
            "gather": [0.0, 1.0, 2.0, 3.0],
            "object": {"from": 1},
            "any": (True, False),
        }


def fail_on_one(context: ParallelContext) -> None:
    with context.together():
        if context.rank == 1:
            raise UserError("no such file: x")


def test_an_error_of_one_rank_is_the_error_of_all() -> None:
    messages = [str(result) for result in run_ranks(Layout(data=2), fail_on_one)]
    assert messages == ["no such file: x (on rank 1)", "no such file: x"]


def test_alone_errors_pass_unchanged() -> None:
    context = ParallelContext.single()
    with pytest.raises(UserError, match="^bad$"), context.together():
        raise UserError("bad")
    with pytest.raises(KeyError), context.together():
        raise KeyError("ours")
