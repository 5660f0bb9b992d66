"""The folder with the shards of a run, and the records that say which are done.

A shard's files bear a key of everything they depend on: options, input file, code. So a run that was killed goes on
with the shards that are missing, and what another input or other options made is never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron.data.cleaning import Removed
from megatron.data.corpus import READ_BYTES
from megatron.data.division import Shard
from megatron.data.encode import Counts
from megatron.errors import UserError
from megatron.files import replace_file

SHOWN_BAD_LINES = 20
LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished shard holds."""

    stop: int
    disk_bytes: int
    last: bool
    """As in `Shard`."""
    lines: int
    skipped: int
    """Malformed lines left out."""
    bad_lines: tuple[tuple[int, str], ...]
    """Number in the shard, from 1, and reason of the first `SHOWN_BAD_LINES` of them."""
    counts: tuple[Counts, ...]
    """One for each of `--json-keys`; a column without a document has no files."""
    removed: tuple[Removed, ...]
    """The same of what cleaning took out."""


@dataclass(frozen=True, kw_only=True)
class ShardStore:
    """The folder with the shards of a run."""

    folder: Path
    file_keys: tuple[str, ...]
    """Key of each input file."""
    takes_bad_lines: bool
    """Whether a shard with malformed lines counts as done."""

    def prefix(self, shard: Shard, column: int) -> str:
        """Prefix of the indexed files of one column."""
        return f"{self._path(shard)}.{column}"

    def read(self, shard: Shard) -> Record | None:
        """The record of a shard; None where it is not done."""
        try:
            content = json.loads(self._path(shard).with_suffix(".json").read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self._path(shard)}.json: {error.strerror}") from None
        content["counts"] = tuple(Counts(**counts) for counts in content["counts"])
        content["removed"] = tuple(Removed(**removed) for removed in content["removed"])
        content["bad_lines"] = tuple((line, reason) for line, reason in content["bad_lines"])
        record = Record(**content)
        return record if self.takes_bad_lines or record.skipped == 0 else None

    def finished(self, shard: Shard) -> Shard | None:
        """The shard at this place of the file as it was encoded; None where it is not done."""
        record = self.read(shard)
        if record is None:
            return None
        return replace(shard, stop=record.stop, disk_bytes=record.disk_bytes, last=record.last)

    def remove_stale(self) -> tuple[int, int]:
        """Remove what other inputs, options or code made, and what a killed run left. Shards kept, and removed."""
        kept = removed = 0
        for path in sorted(self.folder.iterdir()):
            name = path.name.partition(".")[0].split("-")
            ours = len(name) == 3 and name[0].isdigit() and int(name[0]) < len(self.file_keys)
            if ours and name[2] == self.file_keys[int(name[0])] and ".tmp" not in path.name:
                kept += path.suffix == ".json"
            elif path.name != LOCK and path.is_file():
                removed += path.suffix == ".json"
                path.unlink()
        return kept, removed

    def finish(
        self,
        shard: Shard,
        lines: int,
        skipped: int,
        bad_lines: tuple[tuple[int, str], ...],
        counts: tuple[Counts, ...],
        removed: tuple[Removed, ...],
    ) -> Record:
        """Make a shard done, and remove its text if it was spooled. Returns the record."""
        record = Record(
            stop=shard.stop,
            disk_bytes=shard.disk_bytes,
            last=shard.last,
            lines=lines,
            skipped=skipped,
            bad_lines=bad_lines,
            counts=counts,
            removed=removed,
        )
        path = self._path(shard).with_suffix(".json")
        try:
            replace_file(path, json.dumps(asdict(record)).encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        if shard.spooled is not None:
            Path(shard.spooled).unlink()
        return record

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.file:06}-{shard.start:015}-{self.file_keys[shard.file]}"


def file_key(path: str, *facts: str) -> str:
    """Key of what a file becomes under `facts`: changes with its name, size or time. `UserError` if it is not there."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    content = repr((path, status.st_size, status.st_mtime_ns, facts))
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def lines_before(shard: Shard) -> int:
    """Lines of the input file before the shard: known of a piece, else counted (the file is read up to there)."""
    if shard.is_compressed:
        return shard.lines_before
    lines, left = 0, shard.start
    with open(shard.path, "rb", buffering=0) as file:
        while left and (data := file.read(min(left, READ_BYTES))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines
