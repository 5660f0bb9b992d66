"""Checkpoints of earlier versions load and resume; damaged ones give the message that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron.checkpoint import find_checkpoint, load_tensors, save_checkpoint
from megatron.checkpoint.files import sha256
from megatron.checkpoint.shards import Kind, read_index, read_pieces
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece, whole_piece
from tests.training.corpus import records, write_corpus
from tests.training.run import train

SINGLE = ParallelContext.single()
COLLECTION = Path(__file__).parent / "collection"
FORMATS = ["whole-tensors", "shards"]
KINDS: tuple[Kind, Kind] = ("model", "optimizer")


def tensors_of(checkpoint: Path, kind: Kind) -> list[Piece]:
    """Every tensor of a kind, read as loading does."""
    index = read_index(checkpoint, kind)
    pieces = [whole_piece(name, torch.full(stored.shape, torch.nan)) for name, stored in index.items()]
    read_pieces(checkpoint, index, pieces)
    return pieces


def a_copy(kind: str, folder: Path) -> Path:
    """The checkpoint of step 2 in a format, in a folder of its own."""
    old = COLLECTION / "whole-tensors"
    if kind == "whole-tensors":
        shutil.copytree(old, folder)
        return folder / "iter_0000002"
    source = old / "iter_0000002"
    model, optimizer = (tensors_of(source, kind) for kind in KINDS)
    files = {name: (source / name).read_bytes() for name in ("config.json", "train_state.json", "vocab.txt")}
    return save_checkpoint(folder, 2, model=model, optimizer=optimizer, files=files, context=SINGLE)


def test_whole_tensors_load_bit_equal() -> None:
    checkpoint = find_checkpoint(COLLECTION / "whole-tensors", context=SINGLE)
    assert checkpoint is not None
    for kind in KINDS:
        expected = load_file(checkpoint / f"{kind}.safetensors")
        pieces = [whole_piece(name, torch.empty(tensor.shape)) for name, tensor in expected.items()]
        assert load_tensors(checkpoint, kind, pieces, context=SINGLE) == ()
        assert len(pieces) > 20
        assert all(torch.equal(piece.tensor, expected[piece.name]) for piece in pieces)


def test_whole_tensors_resume_as_shards_do(tmp_path: Path) -> None:
    """A run goes on from either format with the same losses, at the step after."""
    write_corpus(tmp_path)
    shape = {"num_layers": 1, "hidden_size": 4, "num_attention_heads": 2, "ffn_hidden_size": 8}
    shape |= {"max_position_embeddings": 16, "seq_length": 16}
    rows = {}
    for kind in FORMATS:
        a_copy(kind, tmp_path / kind)
        train(tmp_path, **shape, train_iters=4, save=tmp_path / kind, metrics_file=tmp_path / f"{kind}.jsonl")
        rows[kind] = [(row["step"], row["mlm_loss"]) for row in records(tmp_path, "train", name=f"{kind}.jsonl")]
    assert [step for step, _ in rows["shards"]] == [3, 4]
    assert rows["whole-tensors"] == rows["shards"]


# Damage


def file_of(checkpoint: Path, kind: Kind) -> Path:
    return next(path for path in sorted(checkpoint.iterdir()) if path.name.startswith(kind))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, content: bytes) -> None:
    """Change a file and the manifest with it, as one who wants to deceive would."""
    path.write_bytes(content)
    manifest = path.parent / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"][path.name] = {"bytes": len(content), "sha256": sha256(path)}
    manifest.write_text(json.dumps(values))


def rename_in_manifest(checkpoint: Path, old: str, new: str) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of the weights": (lambda c: flip(file_of(c, "model"), -3), r"model.*safetensors is damaged: its SHA-256"),
    "a bit of the header": (lambda c: flip(file_of(c, "model"), 40), r"model.*safetensors is damaged: its SHA-256"),
    "a bit of the moments": (lambda c: flip(file_of(c, "optimizer"), -3), r"optimizer.*safetensors is damaged"),
    "a bit of the vocabulary": (lambda c: flip(c / "vocab.txt", 9), "vocab.txt is damaged"),
    "cut": (
        lambda c: file_of(c, "model").write_bytes(file_of(c, "model").read_bytes()[:-9]),
        r"has \d+ bytes instead of \d+; it is cut or damaged",
    ),
    "empty": (lambda c: file_of(c, "optimizer").write_bytes(b""), "has 0 bytes instead of"),
    "weights gone": (lambda c: file_of(c, "model").unlink(), "is missing; the checkpoint is not whole"),
    "configuration gone": (lambda c: (c / "config.json").unlink(), "config.json is missing"),
    "manifest gone": (lambda c: (c / "manifest.json").unlink(), "manifest.json cannot be read: No such file"),
    "manifest cut": (
        lambda c: (c / "manifest.json").write_bytes((c / "manifest.json").read_bytes()[:50]),
        "manifest.json is not a JSON file; it is damaged",
    ),
    "manifest of something else": (
        lambda c: (c / "manifest.json").write_text("[]"),
        "manifest.json does not hold a JSON object",
    ),
    "a path out of the folder": (
        lambda c: rename_in_manifest(c, '"vocab.txt"', '"../vocab.txt"'),
        r"manifest.json is damaged at the entry of '\.\./vocab.txt'",
    ),
    "tracker garbage": (
        lambda c: (c.parent / "latest_checkpointed_iteration.txt").write_bytes(b"\x00\xff"),
        r"latest_checkpointed_iteration.txt holds .* instead of a step; .* write 2 into",
    ),
    "tracker too far": (
        lambda c: (c.parent / "latest_checkpointed_iteration.txt").write_text("9"),
        "iter_0000009 does not exist; to go on from the newest whole one, step 2",
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_gives_its_message(tmp_path: Path, kind: str, damage: str) -> None:
    checkpoint = a_copy(kind, tmp_path / "save")
    make, message = DAMAGES[damage]
    make(checkpoint)
    with pytest.raises(UserError, match=message):
        find_checkpoint(tmp_path / "save", context=SINGLE)


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a header longer than the file": (
        lambda b: (1 << 40).to_bytes(8, "little") + b[8:],
        "not a whole safetensors file",
    ),
    "a header that is no JSON": (lambda b: b[:8] + b"#" + b[9:], "not a whole safetensors file"),
    "a tensor beyond the end": (lambda b: b[:-4], "not a whole safetensors file"),
    "a tensor of another shape": (lambda b: b.replace(b'"shape": [65, 4]', b'"shape": [64, 4]'), "safetensors"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_header_with_the_right_checksum_is_not_believed(tmp_path: Path, kind: str, hostile: str) -> None:
    checkpoint = a_copy(kind, tmp_path / "save")
    make, message = HOSTILE[hostile]
    path = file_of(checkpoint, "model")
    changed = make(path.read_bytes())
    assert changed != path.read_bytes()
    rewrite(path, changed)
    assert find_checkpoint(tmp_path / "save", context=SINGLE) == checkpoint
    with pytest.raises(UserError, match=message):
        read_index(checkpoint, "model")


@pytest.mark.parametrize("place", [b"[9, 0]", b"[0]", b"[-1, 0]", b'["0", 0]', b"null"])
def test_a_block_elsewhere_than_its_tensor_is_refused(tmp_path: Path, place: bytes) -> None:
    checkpoint = a_copy("shards", tmp_path / "save")
    path = file_of(checkpoint, "model")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = "embeddings.word_embeddings.weight"
    places = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    places[name]["saved_offsets"] = json.loads(place)
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(places)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    rewrite(path, len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
    with pytest.raises(UserError, match="parts of embeddings.word_embeddings.weight are missing|damaged header"):
        read_index(checkpoint, "model")
