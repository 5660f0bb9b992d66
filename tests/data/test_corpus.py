"""Files found, lines read in bounded blocks, and every kind of line that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data import corpus
from megatron.data.corpus import Block, find_inputs, parse_block, read_blocks
from megatron.errors import UserError


def documents(paths: list[Path], keys: tuple[str, ...] = ("text",), **options: int) -> list[tuple[str, ...]]:
    found = []
    for block in read_blocks([str(path) for path in paths], **options):
        part, bad = parse_block(block, keys)
        assert not bad
        found += part
    return found


def bad_lines(path: Path, content: bytes, keys: tuple[str, ...] = ("text",)) -> list[str]:
    path.write_bytes(content)
    return [str(bad) for block in read_blocks([str(path)]) for bad in parse_block(block, keys)[1]]


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return zstandard.ZstdCompressor().compress(content) if suffix == ".zst" else content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_every_format(tmp_path: Path, suffix: str, ending: bytes) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in ("一。\n二。", "三")]
    json_path, text_path = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.txt{suffix}"
    json_path.write_bytes(compress(b"\xef\xbb\xbf" + ending.join([lines[0], b"", b"  ", lines[1]]), suffix))
    text = ["\ufeff一。", "二。", "", " \u3000", "　　三", ""]
    text_path.write_bytes(compress(ending.join(line.encode() for line in text), suffix))
    expected = [("一。\n二。",), ("三",)]
    assert documents([json_path]) == expected
    assert documents([text_path]) == expected
    assert documents([json_path, text_path], block_bytes=1) == expected * 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_members(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"".join(compress(f"{i}\n\n".encode() * 1000, suffix) for i in range(3)))
    assert documents([path]) == [(str(i),) for i in range(3) for _ in range(1000)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "trailing"])
def test_damaged_archives(tmp_path: Path, suffix: str, damage: str) -> None:
    content = compress(b"".join(b"%d\n\n" % (i * i) for i in range(50_000)), suffix)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes({"cut": content[:-9], "foreign": b"plain text\n", "trailing": content + b"garbage"}[damage])
    with pytest.raises(UserError, match=rf"a.txt{suffix} is truncated or damaged after line \d+"):
        documents([path])


def test_empty_archives_hold_nothing(tmp_path: Path) -> None:
    for suffix in ("", ".gz", ".zst"):
        (tmp_path / f"a.txt{suffix}").write_bytes(compress(b"", suffix))
        assert documents([tmp_path / f"a.txt{suffix}"]) == []


@given(
    texts=st.lists(st.text(st.sampled_from("我a。 \u3000"), min_size=1, max_size=8).filter(str.strip), max_size=12),
    block_bytes=st.integers(1, 60),
)
@settings(max_examples=100, deadline=None)
def test_block_size_never_matters(tmp_path_factory: pytest.TempPathFactory, texts: list[str], block_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (folder / "a.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    assert documents([folder / "a.txt"], block_bytes=block_bytes) == [(text.strip(),) for text in texts]
    assert documents([folder / "a.jsonl"], block_bytes=block_bytes) == [(text,) for text in texts]


def test_blocks_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "我们"}\n' * 5000, encoding="utf-8")
    blocks = list(read_blocks([str(path)], block_bytes=1000))
    assert all(sum(map(len, block.lines)) < 1100 for block in blocks)
    line = 1
    for block in blocks:
        assert block.first_line == line
        line += len(block.lines)
    assert line == 5001
    assert blocks[-1].bytes_read == path.stat().st_size


def test_a_text_file_without_blank_lines_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_DOCUMENT", 100)
    (tmp_path / "a.txt").write_text("abcdefghi\n" * 25, encoding="utf-8")
    assert [len(text) for (text,) in documents([tmp_path / "a.txt"], block_bytes=10)] == [99, 99, 49]


def test_a_long_line_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "我" * 400_000}) + '\n{"text": "b"}', encoding="utf-8")
    assert [len(text) for (text,) in documents([tmp_path / "a.jsonl"])] == [400_000, 1]


def test_a_line_beyond_the_limit_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 1 << 20)
    found = bad_lines(tmp_path / "a.jsonl", b'{"text": "a"}\n' + b"x" * (3 << 20) + b'\n{"text": "b"}\n{}\n')
    assert [line.split(": ", 1)[0][-2:] for line in found] == [":2", ":4"]
    assert "longer than 1 MiB" in found[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
        (b"[1, 2]", "expected a JSON object, found a list"),
        (b"3", "expected a JSON object, found a number"),
        (b"null", "found null"),
        (b'{"title": "a"}', r"no key 'text' (keys: 'title'); see --json-keys"),
        (b"{}", "no key 'text' (keys: none)"),
        (b'{"text": null}', "the value of 'text' is null, not a string"),
        (b'{"text": ["a"]}', "is a list, not a string"),
        (b'{"text": 5}', "is a number, not a string"),
        (b'{"text": true}', "is true or false, not a string"),
        (b'{"text": "\\ud83d"}', "half a surrogate pair at character 0"),
        (b'{"text": "a\x00b"}', "not JSON: Invalid control character"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10 (0xff)"),
        (b'{"text": "\xe6\x88"}', "not UTF-8 at byte 10 (0xe6)"),
        (b'{"text": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: bytes, message: str) -> None:
    found = bad_lines(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/a.jsonl:3: ")
    assert message in found[0]


def test_utf16_is_recognised(tmp_path: Path) -> None:
    assert "looks like UTF-16" in bad_lines(tmp_path / "a.txt", "我们\n".encode("utf-16"))[0]


def test_the_good_lines_of_a_bad_document_stay() -> None:
    block = Block(path="a.txt", first_line=1, lines=(b"one\n", b"\xff\n", b"two\n"), bytes_read=0)
    found, bad = parse_block(block, ("text",))
    assert found == [("one\ntwo",)]
    assert [line.line for line in bad] == [2]


def test_several_keys() -> None:
    block = Block(path="a.jsonl", first_line=1, lines=(b'{"b": "2", "a": "1"}\n', b'{"a": "1"}\n'), bytes_read=0)
    found, bad = parse_block(block, ("a", "b"))
    assert found == [("1", "2")]
    assert len(bad) == 1


def test_finding_inputs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ["b.jsonl", "a.txt.gz", "sub/c.json.zst", "README.md", ".hidden.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    expected = [str(tmp_path / name) for name in ("a.txt.gz", "b.jsonl", "sub/c.json.zst")]
    assert find_inputs([str(tmp_path)]) == expected
    assert find_inputs([f"{tmp_path}/**/*"]) == expected
    assert find_inputs([expected[1], f"{tmp_path}/*.gz"]) == [expected[1], expected[0]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("absent.jsonl", "no such file, folder or glob"),
        ("*.nothing", "no such file, folder or glob"),
        ("README.md", "must end in one of .jsonl"),
        ("empty", "holds no file that ends in"),
    ],
)
def test_inputs_that_are_not_there(tmp_path: Path, item: str, message: str) -> None:
    (tmp_path / "README.md").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_inputs([str(tmp_path / item)])


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(UserError, match="a.txt twice"):
        find_inputs([str(tmp_path), str(tmp_path / "a.txt")])


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone.txt: No such file"):
        list(read_blocks([str(tmp_path / "gone.txt")]))
