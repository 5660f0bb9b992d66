from pathlib import Path

import pytest

from megatron.errors import UserError
from megatron.files import read_lines, replace_file, write_file


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_file(path, "好\n".encode())
    write_file(path, b"again")
    assert path.read_bytes() == b"again"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write .*a.json"):
        write_file(tmp_path / "file" / "a.json", b"x")


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_lines_are_those_of_any_editor(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeff我\r\n\n a\u2028b\x0c\n".encode())
    assert read_lines(tmp_path / "a", "words") == ["我", "", " a\u2028b\x0c"]
    (tmp_path / "a").write_bytes(b"")
    assert read_lines(tmp_path / "a", "words") == []


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="words .*a: No such file"):
        read_lines(tmp_path / "a", "words")
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"words .*a is not UTF-8 \(byte 2\)"):
        read_lines(tmp_path / "a", "words")
