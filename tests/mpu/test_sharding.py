import torch
from torch import nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.mpu.layout import Layout
from megatron.mpu.sharding import initialize
from tests.ranks import run_ranks


def build(context: ParallelContext) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Local tensors, padding cut off, with their place in the global tensor filled and the rest NaN."""
    module = nn.ModuleDict(
        {
            "column": ColumnParallelLinear(6, 8, context, std=0.5),
            "row": RowParallelLinear(8, 6, context, std=0.5),
            "words": VocabParallelEmbedding(7, 4, context, std=0.5),
        }
    )
    initialize(module, seed=3)
    result = {}
    for name, parameter in module.named_parameters():
        whole = torch.full(parameter.shard.global_shape, torch.nan)
        parameter.shard.of_global(whole).copy_(parameter.shard.of_local(parameter.detach()))
        result[name] = (whole, parameter.detach())
    return result


def test_initial_values_are_a_function_of_seed_and_name_in_every_layout() -> None:
    (alone,) = run_ranks(Layout(), build)
    for size in (2, 3):
        if size == 3:
            continue_names = ("words.weight",)  # 6 and 8 do not divide by 3; rows of the word table need not
        else:
            continue_names = tuple(alone)
        parts = run_ranks(Layout(tensor=size), build)
        for name in continue_names:
            covered = torch.zeros_like(alone[name][0], dtype=torch.bool)
            for part in parts:
                held = ~part[name][0].isnan()
                assert torch.equal(part[name][0][held], alone[name][0][held]), name
                covered |= held
            assert covered.all(), name


def test_padding_rows_are_zero() -> None:
    parts = run_ranks(Layout(tensor=2), build)
    assert parts[1]["words.weight"][1].shape == (4, 4)
    assert torch.equal(parts[1]["words.weight"][1][3], torch.zeros(4))


def test_names_and_seeds_give_different_values() -> None:
    (values,) = run_ranks(Layout(), build)
    assert not torch.equal(values["column.weight"][0].flatten(), values["row.weight"][0].flatten())
