"""Raw text to indexed token files: sentences, token ids, word starts, and a data card that says what is in them.

The parent process reads blocks of lines and writes results in order; workers do everything between. So the files
are the same bytes for any number of workers.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import megatron
from megatron.data.corpus import find_inputs, read_blocks
from megatron.data.encode import Counts, make_encoder
from megatron.data.indexed import IndexedWriter
from megatron.data.segmenter import load_segmenter
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.data.workers import ordered_map
from megatron.errors import UserError
from megatron.files import write_file

SHOWN_BAD_LINES = 20


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Preprocessing"""

    input: tuple[str, ...]
    """Files, folders or globs: .jsonl and .json (one object a line), .txt (a blank line between documents), and each
    with .gz or .zst."""
    json_keys: tuple[str, ...] = ("text",)
    """Keys of the JSON objects to take; each gives its own output."""
    output_prefix: str
    """Output path without the ending `_KEY_sentence.bin`."""
    tokenizer_type: Literal["BertWordPieceCase", "BertWordPieceLowerCase", "SentencePieceTokenizer"]
    """Kind of the tokenizer."""
    vocab_file: str | None = None
    """vocab.txt of a WordPiece tokenizer."""
    tokenizer_model: str | None = None
    """SentencePiece model."""
    split_sentences: bool = False
    """Split documents into sentences (needed for the sentence-order task); else a document is one sentence."""
    segmenter: Literal["none", "jieba", "rjieba"] = "none"
    """Word segmentation for whole-word masking of Chinese. Without it every Chinese character is a word."""
    user_dict: str | None = None
    """jieba user dictionary: lines WORD [FREQUENCY] [TAG]."""
    workers: int = 1
    """Worker processes."""
    log_interval: int = 1000
    """Documents between two progress lines."""
    skip_bad_lines: bool = False
    """Leave malformed lines out and count them; by default the first one stops the run."""


def preprocess(config: PreprocessConfig) -> None:
    """Run `tools/preprocess_data.py`. Raises `UserError` for whatever is wrong with options, files or lines."""
    for name in ("workers", "log_interval"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")
    if len(set(config.json_keys)) != len(config.json_keys) or not config.json_keys:
        raise UserError("--json-keys must name every key once")
    paths = find_inputs(config.input)
    if len(config.json_keys) > 1 and any(".txt" in os.path.basename(path)[-8:] for path in paths):
        raise UserError("several --json-keys do not go with .txt files, which hold one text a document")
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file, config.tokenizer_model)
    load_segmenter(config.segmenter, config.user_dict)  # so that a mistake shows here, not in every worker

    level = "sentence" if config.split_sentences else "document"
    prefixes = [f"{config.output_prefix}_{key}_{level}" for key in config.json_keys]
    writers: list[IndexedWriter] = []
    try:
        for prefix in prefixes:
            writers.append(IndexedWriter(prefix, tokenizer.vocab_size, words=True))
        totals, skipped = _write_blocks(config, paths, writers)
        for key, total in zip(config.json_keys, totals, strict=True):
            if total.tokens == 0:
                raise UserError(f"no text under key {key!r} in {', '.join(config.input)}; nothing was written")
        for prefix, writer, key, total in zip(prefixes, writers, config.json_keys, totals, strict=True):
            # An old card must not stand beside new files, nor a card beside files that did not appear.
            Path(f"{prefix}.json").unlink(missing_ok=True)
            writer.finish()
            card = data_card(config, key, tokenizer, total, skipped)
            write_file(Path(f"{prefix}.json"), (json.dumps(card, ensure_ascii=False, indent=2) + "\n").encode())
            print(_summary(prefix, card), flush=True)
    finally:
        for writer in writers:
            writer.abort()


def _write_blocks(
    config: PreprocessConfig, paths: Sequence[str], writers: Sequence[IndexedWriter]
) -> tuple[list[Counts], int]:
    """Encode all blocks into the writers. Returns the counts of each key and the number of skipped lines."""
    totals = [Counts() for _ in writers]
    skipped = 0
    file_bytes = sum(os.path.getsize(path) for path in paths)
    plural = "s" if len(paths) > 1 else ""
    print(f"{len(paths)} file{plural}, {file_bytes / 1e6:,.1f} MB; {config.workers} workers", flush=True)
    started = time.monotonic()
    logged = 0
    make = partial(
        make_encoder,
        tokenizer_type=config.tokenizer_type,
        vocab_file=config.vocab_file,
        tokenizer_model=config.tokenizer_model,
        segmenter=config.segmenter,
        user_dict=config.user_dict,
        split=config.split_sentences,
        keys=config.json_keys,
    )
    with closing(ordered_map(make, read_blocks(paths), workers=config.workers)) as blocks:
        for block in blocks:
            for bad in block.bad_lines:
                if not config.skip_bad_lines:
                    raise UserError(f"{bad} (--skip-bad-lines leaves such lines out); nothing was written")
                skipped += 1
                if skipped <= SHOWN_BAD_LINES:
                    more = "; further ones are only counted" if skipped == SHOWN_BAD_LINES else ""
                    print(f"skipped: {bad}{more}", file=sys.stderr, flush=True)
            for writer, column, total in zip(writers, block.columns, totals, strict=True):
                writer.add(column.tokens, column.lengths, column.documents, column.word_starts)
                total.add(column.counts)
            documents = totals[0].documents + totals[0].empty_documents
            if documents // config.log_interval > logged:
                logged = documents // config.log_interval
                text_bytes = sum(total.text_bytes for total in totals)
                seconds = time.monotonic() - started
                print(_progress(documents, text_bytes, seconds, block.bytes_read / file_bytes), flush=True)
    return totals, skipped


def data_card(
    config: PreprocessConfig, key: str, tokenizer: Tokenizer, counts: Counts, skipped: int
) -> dict[str, object]:
    """What the files hold and how they were made; the same for any number of workers."""
    options = asdict(config)
    for name in ("workers", "log_interval"):
        del options[name]
    packages = ["numpy", "regex"]
    packages += ["sentencepiece"] if config.tokenizer_model is not None else ["tokenizers"]
    packages += [config.segmenter] if config.segmenter != "none" else []
    return {
        "key": key,
        **asdict(counts),
        "skipped_lines": skipped,
        "unknown_rate": counts.unknown_tokens / counts.tokens,
        "mean_sentence_length": counts.tokens / counts.sentences,
        "mean_document_length": counts.tokens / counts.documents,
        "mean_sentences_per_document": counts.sentences / counts.documents,
        "multi_character_word_share": counts.multi_character_words / counts.words,
        "vocab_size": tokenizer.vocab_size,
        "vocabulary_hash": tokenizer.vocabulary_hash,
        "options": options,
        "versions": {"megatron": megatron.__version__}
        | {package: importlib.metadata.version(package) for package in packages},
    }


def _progress(documents: int, text_bytes: int, seconds: float, share: float) -> str:
    left = int(seconds / share - seconds) if share else 0
    return (
        f"{documents:,} documents | {text_bytes / 1e6:,.1f} MB | {text_bytes / 1e6 / seconds:.2f} MB/s | "
        f"{documents / seconds:,.0f} documents/s | {100 * share:.1f} % | "
        f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    )


def _summary(prefix: str, card: dict[str, object]) -> str:
    return (
        f"{prefix}: {card['documents']:,} documents, {card['sentences']:,} sentences, {card['tokens']:,} tokens, "
        f"{card['mean_sentence_length']:.1f} tokens a sentence, {100 * float(str(card['unknown_rate'])):.3f} % [UNK], "
        f"{100 * float(str(card['multi_character_word_share'])):.1f} % of words longer than a character, "
        f"{card['skipped_lines']:,} lines skipped"
    )
