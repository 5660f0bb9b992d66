"""Corpora divided into shards: everything once and in order, whatever the size, and never through a document."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data import corpus, division
from megatron.data.corpus import parse_block, read_range
from megatron.data.division import Shard, divide, is_large, part_of, shard_bytes, spool
from megatron.errors import UserError


def texts_of(shard: Shard) -> list[str]:
    start, stop = (shard.start, shard.stop) if shard.spooled is None else (0, shard.stop - shard.start)
    blocks = read_range(shard.path, shard.spooled or shard.path, start, stop)
    return [text for block in blocks for (text,) in parse_block(block, ("text",))[0]]


@given(
    texts=st.lists(st.text(st.sampled_from("我a。 \u3000\n"), min_size=1, max_size=30).filter(str.strip), max_size=12),
    size=st.integers(1, 100),
    ending=st.sampled_from(["", "\n", "\n\n\n"]),
)
@settings(max_examples=100, deadline=None)
def test_shards_hold_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("division")
    paragraphs = ["\n".join(line.strip() for line in text.split("\n") if line.strip()) for text in texts]
    (folder / "a.txt").write_text("\n\n".join(paragraphs) + ending, encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + ending)
    for name, expected in (("a.txt", paragraphs), ("b.jsonl", texts)):
        path = folder / name
        shards = divide([str(path)], size)
        assert [text for shard in shards for text in texts_of(shard)] == expected
        assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
        assert sum(shard.disk_bytes for shard in shards) == path.stat().st_size == shards[-1].stop

        packed = folder / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        pieces = list(spool(divide([str(packed)], size)[0], size, folder, lambda shard: None))
        assert [text for shard in pieces for text in texts_of(shard)] == expected
        assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        # The text of a compressed file is divided as the file itself would be.
        assert [(piece.start, piece.stop) for piece in pieces] == [(shard.start, shard.stop) for shard in shards]
        lines = 0
        for piece in pieces:
            assert piece.lines_before == lines
            assert piece.spooled is not None
            lines += Path(piece.spooled).read_bytes().count(b"\n")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_long_lines_and_endless_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(division, "LONGEST_DOCUMENT", 100)
    monkeypatch.setattr(division, "READ_BYTES", 32)
    monkeypatch.setattr(corpus, "LONGEST_DOCUMENT", 100)
    content = {"a.jsonl": b"".join(b'{"text": "%s"}\n' % (b"x" * 500) for _ in range(5)), "a.txt": b"abcdefghi\n" * 50}
    for name, data in content.items():
        path = tmp_path / f"{name}{suffix}"
        pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
        path.write_bytes(pack(data))
        shards = divide([str(path)], 10)
        if suffix:
            shards = list(spool(shards[0], 10, tmp_path, lambda shard: None))
        assert len(shards) == 5
        assert (
            "".join(text for shard in shards for text in texts_of(shard)).count("x" if "json" in name else "abc") > 49
        )


def test_finished_pieces_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"".join(b"%d\n\n" % i for i in range(1000))))
    whole = divide([str(path)], 500)[0]
    first = list(spool(whole, 500, tmp_path, lambda shard: None))
    known = {piece.start: replace(piece, spooled=None) for piece in first}
    del known[first[3].start]
    second = list(spool(whole, 500, tmp_path, lambda shard: known.get(shard.start)))
    assert [piece.spooled is not None for piece in second] == [i == 3 for i in range(len(first))]
    assert second[3] == first[3]

    known[first[3].start] = first[3]
    path.unlink()
    assert [piece.start for piece in spool(whole, 500, tmp_path, lambda shard: known.get(shard.start))] == sorted(known)


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"".join(b"%d\n\n" % (i * i) for i in range(50_000)))[:-9])
    with pytest.raises(UserError, match=r"a.txt.gz is truncated or damaged after line \d+"):
        list(spool(divide([str(path)], 1000)[0], 1000, tmp_path, lambda shard: None))


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40), parts=st.integers(1, 40))
def test_parts_cover_the_shards(sizes: list[int], parts: int) -> None:
    shards = [Shard(file=i, path=f"{i}", start=0, stop=size, disk_bytes=size) for i, size in enumerate(sizes)]
    if parts > len(shards):
        with pytest.raises(UserError, match=rf"--shard 1/{parts}: the input divides into {len(shards)} parts"):
            part_of(shards, 1, parts)
        return
    divided = [part_of(shards, part, parts) for part in range(1, parts + 1)]
    assert [shard for part in divided for shard in part] == shards
    assert all(divided)


def test_large_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert shard_bytes([str(tmp_path / "a.txt")]) == division.SMALLEST_SHARD
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(60 << 30)
    assert shard_bytes([str(tmp_path / "a.txt")]) == 1 << 26
    shard = Shard(file=0, path="a.jsonl.gz", start=0, stop=100, disk_bytes=100)
    assert [is_large(shard, size) for size in (99, 100)] == [True, False]
    assert not is_large(replace(shard, path="a.jsonl"), 99)
