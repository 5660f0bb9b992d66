"""One shard of a corpus: read, cleaned, and encoded by a worker into files of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.data.cleaning import Removed, clean_documents, make_character_cleaner
from megatron.data.corpus import BadLine, parse_documents, read_range
from megatron.data.decisions import load_boilerplate, load_decisions
from megatron.data.division import Shard
from megatron.data.encode import Column, Counts, compiled_encoder, encode_documents, to_column
from megatron.data.indexed import IndexedWriter
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.progress import Progress, make_progress
from megatron.data.provenance import encode_sources, write_sources
from megatron.data.segmenter import load_segmenter
from megatron.data.shard_store import SHOWN_BAD_LINES, Record, ShardStore, lines_before
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError


def make_shard_encoder(
    config: PreprocessConfig, store: ShardStore, survey: ShardStore | None
) -> Callable[[Shard], Record]:
    """A function that encodes a shard into the store, with the tokenizer and the segmenter loaded once.

    `survey` has the decisions of the first pass, if there was one. The function raises `UserError` for the first
    malformed line unless the options skip such lines, and where a file cannot be read or written.
    """
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file, config.tokenizer_model)
    cut = load_segmenter(config.segmenter, config.user_dict)
    clean = make_character_cleaner(config.normalize, config.simplify)
    boilerplate = [load_boilerplate(survey, i) for i in range(len(config.json_keys))]
    progress = make_progress(store.folder)

    compiled = compiled_encoder(tokenizer, cut, split=config.split_sentences)

    def encode(texts: Sequence[str]) -> Column:
        if compiled is not None:
            return to_column(compiled.encode(list(texts)))
        return encode_documents(texts, tokenizer, cut, split=config.split_sentences)

    def encode_shard(shard: Shard) -> Record:
        columns: list[_Output] = []
        lines = skipped = first = 0
        shown: list[tuple[int, str]] = []
        decisions = [load_decisions(survey, shard, i) for i in range(len(config.json_keys))]
        try:
            for i in range(len(config.json_keys)):
                columns.append(_Output(store.prefix(shard, i), tokenizer.vocab_size))
            for documents, numbers, block_lines, bad in read_documents(shard, config, progress):
                shown += [(line.line, line.reason) for line in bad[: SHOWN_BAD_LINES - len(shown)]]
                skipped += len(bad)
                lines += block_lines
                for i, column in enumerate(columns):
                    texts, kept, removed = clean_documents(
                        [document[i] for document in documents],
                        clean,
                        min_chinese_share=config.min_chinese_share,
                        decisions=decisions[i][first : first + len(documents)],
                        boilerplate=boilerplate[i],
                    )
                    encoded = encode(texts)
                    lines_kept = np.array(numbers, dtype=np.int64)[kept][_has_tokens(texts, encoded, encode)]
                    column.add(encoded, encode_sources(shard.file, lines_kept))
                    column.removed.add(removed)
                first += len(documents)
            for column in columns:
                column.finish()
        finally:
            for column in columns:
                column.writer.abort()
        return store.finish(
            shard,
            lines,
            skipped,
            tuple(shown),
            tuple(column.counts for column in columns),
            tuple(column.removed for column in columns),
        )

    return encode_shard


def read_documents(
    shard: Shard, config: PreprocessConfig, progress: Progress
) -> Iterator[tuple[list[tuple[str, ...]], list[int], int, list[BadLine]]]:
    """Documents of a shard block by block, each with its texts and number of its first line; lines; malformed lines.

    Lines count from 1 in the shard. Raises `UserError` for the first malformed line unless the options skip such lines.
    """
    taken = 0
    start, stop = (shard.start, shard.stop) if shard.spooled is None else (0, shard.stop - shard.start)
    for block in read_range(shard.path, shard.spooled or shard.path, start, stop):
        documents, numbers, bad = parse_documents(block, config.json_keys)
        if bad and not config.skip_bad_lines:
            first = BadLine(shard.path, bad[0].line + lines_before(shard), bad[0].reason)
            raise UserError(f"{first} (--skip-bad-lines leaves such lines out)")
        # Of a piece, its share of the compressed bytes.
        disk_bytes = shard.disk_bytes * block.bytes_read // max(1, stop - start)
        progress(len(documents), sum(len(line or b"") for line in block.lines), disk_bytes - taken, 0)
        taken = disk_bytes
        yield documents, numbers, len(block.lines), bad


class _Output:
    """The files of one column of a shard."""

    def __init__(self, prefix: str, vocab_size: int) -> None:
        self.writer = IndexedWriter(prefix, vocab_size, words=True)
        self.counts = Counts()
        self.removed = Removed()
        self._sources: list[NDArray[np.uint64]] = []

    def add(self, column: Column, sources: NDArray[np.uint64]) -> None:
        """Append documents, and where each came from: uint64 [documents]."""
        self.writer.add(column.tokens, column.lengths, column.documents, column.word_starts)
        self.counts.add(column.counts)
        self._sources.append(sources)

    def finish(self) -> None:
        """Make the files appear; a column without a document has none."""
        if self.counts.documents == 0:
            return
        self.writer.finish()
        try:
            write_sources(Path(f"{self.writer.prefix}.sources"), np.concatenate(self._sources))
        except OSError as error:
            raise UserError(f"cannot write {self.writer.prefix}.sources: {error.strerror}") from None


def _has_tokens(texts: Sequence[str], column: Column, encode: Callable[[Sequence[str]], Column]) -> NDArray[np.bool_]:
    """Bool [texts]: which documents the column holds. It leaves out those without a token, found among the shortest."""
    found = np.ones(len(texts), dtype=bool)
    if column.counts.documents == len(texts):
        return found
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if found.sum() == column.counts.documents:
            break
        found[i] = encode([texts[i]]).counts.documents > 0
    return found
