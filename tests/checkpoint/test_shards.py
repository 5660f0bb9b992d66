"""Blocks of tensors in the files of a checkpoint: of any rank in any other, and as other readers see them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from megatron.checkpoint import store
from megatron.checkpoint.direct import Written
from megatron.checkpoint.files import write_manifest
from megatron.checkpoint.store import load_tensors, write_own
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.sharding import Piece, ShardSpec, pieces_of, whole_piece
from tests.checkpoint.small import SINGLE, no_space, pieces, save, weights
from tests.checkpoint.weights import weights_of
from tests.ranks import run_ranks


def test_other_readers_of_safetensors_agree(tmp_path: Path) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    tensors = {str(dtype): torch.arange(15).reshape(5, 3).to(dtype) for dtype in dtypes}
    tensors |= {"a view": torch.arange(12.0).reshape(3, 4).t(), "empty": torch.zeros(0, 3), "one": torch.tensor(5)}
    path = save(tmp_path, 1, model=pieces(tensors))
    read = load_file(path / "model-00000.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_only_the_block_of_a_rank_is_loaded_and_padding_left(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    word = weights(1)["word"]
    rows, columns = torch.full((4, 4), -1.0), torch.zeros(7, 2, dtype=torch.bfloat16)
    for local, shard in (
        (rows, ShardSpec(global_shape=(7, 4), dim=0, start=4, size=3)),
        (columns, ShardSpec(global_shape=(7, 4), dim=1, start=2, size=2)),
    ):
        into = list(pieces_of("word", shard, tuple(local.shape), local.view(-1)))
        load_tensors(path, "model", into, context=SINGLE, may_hold=("bias", "scale"))
    assert torch.equal(rows[:3], word[4:])
    assert torch.equal(rows[3], torch.full((4,), -1.0))
    assert torch.equal(columns, word[:, 2:].bfloat16())


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    cuts=st.lists(st.integers(0, 125), max_size=4),
    others=st.lists(st.integers(0, 125), max_size=4),
)
def test_any_stretches_of_a_tensor_give_any_others(shape: list[int], cuts: list[int], others: list[int]) -> None:
    """As ZeRO does: ranks hold stretches of the flat tensor, other ones when it is loaded."""
    whole = torch.randn(shape)

    def stretches(tensor: torch.Tensor, at: list[int]) -> list[list[Piece]]:
        ends = [0, *sorted(min(cut, tensor.numel()) for cut in at), tensor.numel()]
        spec, flat = ShardSpec(global_shape=tuple(shape)), tensor.view(-1)
        return [list(pieces_of("x", spec, tuple(shape), flat[a:b], a)) for a, b in pairwise(ends)]

    with tempfile.TemporaryDirectory() as folder:
        for rank, part in enumerate(stretches(whole, cuts)):
            assert len(part) <= max(1, 2 * len(shape) - 1)
            written, failure = write_own(Path(folder), part, [], rank)
            assert not failure
            known = json.loads((Path(folder) / "manifest.json").read_text())["files"] if rank else {}
            write_manifest(Path(folder), {name: Written(**entry) for name, entry in known.items()} | written)
        found = torch.zeros(shape)
        for part in stretches(found, others):
            load_tensors(Path(folder), "model", part, context=SINGLE, may_hold=("x",))
    assert torch.equal(found, whole)


def _wholes() -> dict[str, torch.Tensor]:
    return {**weights(4), "columns": weights(4)["word"]}


def _local(context: ParallelContext) -> list[Piece]:
    """Blocks of ceil(7 / 2) rows; the last one is padded with NaN."""
    rank = context.tensor.rank
    start, size = rank * 4, 4 - rank
    word, bias = weights(4)["word"], weights(4)["bias"]
    rows, padded = torch.full((4, 4), float("nan")), torch.full((4,), float("nan"))
    rows[:size], padded[:size] = word[start : start + size], bias[start : start + size]
    columns = word[:, rank * 2 : rank * 2 + 2].contiguous()
    divided = [
        ("word", rows, ShardSpec(global_shape=(7, 4), dim=0, start=start, size=size)),
        ("columns", columns, ShardSpec(global_shape=(7, 4), dim=1, start=rank * 2, size=2)),
        ("bias", padded, ShardSpec(global_shape=(7,), dim=0, start=start, size=size)),
    ]
    found = [
        piece
        for name, tensor, shard in divided
        for piece in pieces_of(name, shard, tuple(tensor.shape), tensor.view(-1))
    ]
    return [*found, whole_piece("scale", weights(4)["scale"])]


def _tensor_parallel(context: ParallelContext, folder: Path, fail: bool) -> None:
    if fail and context.is_main:
        store.durable_file = no_space
    own = _local(context) if context.data.rank == 0 else []
    save(folder, 4, context, model=[p for p in own if p.name != "scale" or context.tensor.rank == 0], optimizer=[])
    into = [replace(piece, tensor=torch.zeros_like(piece.tensor)) for piece in _local(context)]
    load_tensors(folder / "iter_0000004", "model", into, context=context)
    for piece, expected in zip(into, _local(context), strict=True):
        assert torch.equal(piece.tensor, expected.tensor)


def test_tensor_parallel_ranks_write_their_blocks(tmp_path: Path) -> None:
    run_ranks(Layout(data=2, tensor=2), _tensor_parallel, tmp_path, False)
    found = weights_of(tmp_path / "iter_0000004")
    assert found.keys() == _wholes().keys()
    for name, tensor in _wholes().items():
        assert torch.equal(found[name], tensor)


def test_pytorch_reads_the_shards(tmp_path: Path) -> None:
    """They are the safetensors storage of torch.distributed.checkpoint."""
    run_ranks(Layout(data=2, tensor=2), _tensor_parallel, tmp_path, False)
    state = {name: torch.zeros_like(tensor) for name, tensor in _wholes().items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(tmp_path / "iter_0000004")), no_dist=True)
    for name, tensor in _wholes().items():
        assert torch.equal(state[name], tensor), name


def test_a_full_disk_with_tensor_parallel_ranks_does_not_hang(tmp_path: Path) -> None:
    results = run_ranks(Layout(data=1, tensor=2), _tensor_parallel, tmp_path, True, seconds=60)
    assert all(isinstance(result, UserError) and "No space left" in str(result) for result in results), results
