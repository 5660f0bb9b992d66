import pytest

from megatron.errors import UserError
from megatron.mpu.layout import Layout, layout_of_world


@pytest.mark.parametrize("layout", [Layout(), Layout(data=3), Layout(pipeline=2, data=3, tensor=4)])
def test_coordinates_and_ranks_are_inverse(layout: Layout) -> None:
    coordinates = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len(set(coordinates)) == layout.world_size
    assert [layout.rank(*c) for c in coordinates] == list(range(layout.world_size))


def test_tensor_neighbours_are_next_to_each_other() -> None:
    layout = Layout(pipeline=2, data=2, tensor=2)
    assert [layout.coordinates(rank) for rank in (0, 1, 2, 4)] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_data_parallel_size_is_what_remains() -> None:
    assert layout_of_world(12, tensor=2, pipeline=3) == Layout(pipeline=3, data=2, tensor=2)


def test_sizes_that_do_not_divide_are_refused_not_clamped() -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        layout_of_world(6, tensor=4, pipeline=1)
