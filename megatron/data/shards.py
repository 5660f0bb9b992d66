"""One shard of a corpus: read, cleaned, and encoded by a worker into files of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.data.cleaning import Removed, clean_documents, make_character_cleaner
from megatron.data.corpus import BadLine, Block, parse_documents, read_range
from megatron.data.decisions import load_boilerplate, load_decisions
from megatron.data.division import Shard
from megatron.data.encode import Column, Counts, make_encoder
from megatron.data.indexed import IndexedWriter
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.progress import make_progress
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
    encoder = make_encoder(tokenizer, cut, split=config.split_sentences, keys=config.json_keys)
    clean = make_character_cleaner(config.normalize, config.simplify)
    cleans = config.normalize != "none" or config.simplify or config.min_chinese_share > 0 or survey is not None
    boilerplate = [load_boilerplate(survey, i) for i in range(len(config.json_keys))]
    progress = make_progress(store.folder)

    def encode_shard(shard: Shard) -> Record:
        outputs: list[_Output] = []
        lines = skipped = first = 0
        shown: list[tuple[int, str]] = []
        decisions = [load_decisions(survey, shard, i) for i in range(len(config.json_keys))]
        try:
            for i in range(len(config.json_keys)):
                outputs.append(_Output(store.prefix(shard, i), tokenizer.vocab_size))
            for block, disk_bytes in read_blocks(shard):
                columns = None if cleans else encoder.lines(block)
                if columns is not None:
                    numbers = _lines_with_text(block)
                    bad: list[BadLine] = []
                    for output, column in zip(outputs, columns, strict=True):
                        output.add(column, shard.file, numbers)
                else:
                    documents, numbers, bad = parse(shard, block, config)
                    for i, output in enumerate(outputs):
                        texts, kept, removed = clean_documents(
                            [document[i] for document in documents],
                            clean,
                            min_chinese_share=config.min_chinese_share,
                            decisions=decisions[i][first : first + len(documents)],
                            boilerplate=boilerplate[i],
                        )
                        output.add(encoder.texts(texts), shard.file, numbers[kept])
                        output.removed.add(removed)
                first += len(numbers)
                lines += len(block.lines)
                shown += [(line.line, line.reason) for line in bad[: SHOWN_BAD_LINES - len(shown)]]
                skipped += len(bad)
                progress(len(numbers), text_bytes(block), disk_bytes, 0)
            for output in outputs:
                output.finish()
        finally:
            for output in outputs:
                output.writer.abort()
        return store.finish(
            shard,
            lines,
            skipped,
            tuple(shown),
            tuple(output.counts for output in outputs),
            tuple(output.removed for output in outputs),
        )

    return encode_shard


def read_blocks(shard: Shard) -> Iterator[tuple[Block, int]]:
    """The blocks of a shard, each with the bytes on disk that it stands for. Lines count from 1 in the shard."""
    taken = 0
    start, stop = (shard.start, shard.stop) if shard.spooled is None else (0, shard.stop - shard.start)
    for block in read_range(shard.path, shard.spooled or shard.path, start, stop):
        # Of a piece, its share of the compressed bytes.
        disk_bytes = shard.disk_bytes * block.bytes_read // max(1, stop - start)
        yield block, disk_bytes - taken
        taken = disk_bytes


def parse(
    shard: Shard, block: Block, config: PreprocessConfig
) -> tuple[list[tuple[str, ...]], NDArray[np.int64], list[BadLine]]:
    """Documents of a block as texts, the numbers of their first lines in the shard, and malformed lines.

    Raises `UserError` for the first malformed line unless the options skip such lines.
    """
    documents, numbers, bad = parse_documents(block, config.json_keys)
    if bad and not config.skip_bad_lines:
        first = BadLine(shard.path, bad[0].line + lines_before(shard), bad[0].reason)
        raise UserError(f"{first} (--skip-bad-lines leaves such lines out)")
    return documents, np.array(numbers, dtype=np.int64), bad


def text_bytes(block: Block) -> int:
    """Bytes of the lines of a block."""
    return sum(len(line or b"") for line in block.lines)


def _lines_with_text(block: Block) -> NDArray[np.int64]:
    """Numbers of the lines of JSON that are not blank, each a document."""
    found = [number for number, line in enumerate(block.lines, block.first_line) if line and not line.isspace()]
    return np.array(found, dtype=np.int64)


class _Output:
    """The files of one column of a shard."""

    def __init__(self, prefix: str, vocab_size: int) -> None:
        self.writer = IndexedWriter(prefix, vocab_size, words=True)
        self.counts = Counts()
        self.removed = Removed()
        self._sources: list[NDArray[np.uint64]] = []

    def add(self, column: Column, file: int, lines: NDArray[np.int64]) -> None:
        """Append documents; `lines` [documents] are the lines of the file where they begin."""
        used = column.documents > 0
        self.writer.add(column.tokens, column.lengths, column.documents[used], column.word_starts)
        self.counts.add(column.counts)
        self._sources.append(encode_sources(file, lines[used]))

    def finish(self) -> None:
        """Make the files appear; a column without a document has none."""
        if self.counts.documents == 0:
            return
        self.writer.finish()
        try:
            write_sources(Path(f"{self.writer.prefix}.sources"), np.concatenate(self._sources))
        except OSError as error:
            raise UserError(f"cannot write {self.writer.prefix}.sources: {error.strerror}") from None
