"""The options of `tools/preprocess_data.py`, and which of them decide what is written."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megatron.errors import UserError

HOW = ("workers", "log_interval", "shard", "ray")
"""Options that never change what is written."""


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
    segmenter: Literal["none", "jieba"] = "none"
    """Word segmentation for whole-word masking of Chinese. Without it every Chinese character is a word."""
    user_dict: str | None = None
    """jieba user dictionary: lines WORD [FREQUENCY] [TAG]."""
    normalize: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normal form to bring the text into."""
    simplify: bool = False
    """Turn traditional into simplified characters (needs the package opencc)."""
    min_chinese_share: float = 0.0
    """Leave out documents with a smaller share of Chinese characters among those that are no white space."""
    drop_duplicates: bool = False
    """Leave out documents that are equal to an earlier one. With --shard: of the same part."""
    drop_near_duplicates: float | None = None
    """Leave out documents whose estimated similarity with an earlier one (MinHash over runs of five characters) is at
    least this, such as 0.8 (needs the package rensa). With --shard: of the same part."""
    drop_boilerplate: int | None = None
    """Remove lines that stand in at least this many documents; shards of the input, some MB each, in which a line
    stands in one document only do not count. With --shard: of the same part."""
    skip_bad_lines: bool = False
    """Leave malformed lines out and count them; by default the first one stops the run."""
    workers: int = 1
    """Worker processes."""
    ray: str | None = None
    """Address of a Ray cluster (auto, or HOST:PORT) that runs the workers, of one CPU each; all its nodes must see the
    files under the same paths (needs the package ray)."""
    shard: str | None = None
    """I/N: only the I-th of N parts of the input, from 1/N to N/N, for array jobs; tools/merge_datasets.py merges them.
    A compressed file is never divided between parts."""
    log_interval: int = 1000
    """Documents between two progress lines; there is at most one a second."""

    @property
    def part(self) -> tuple[int, int] | None:
        """I and N of `shard`. Raises `UserError` where it is malformed."""
        if self.shard is None:
            return None
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {self.shard}: give I/N, a part from 1/N to N/N, such as 3/16")
        return int(found[1]), int(found[2])

    def prefixes(self) -> tuple[str, ...]:
        """Prefix of the output of each key."""
        level = "sentence" if self.split_sentences else "document"
        return tuple(f"{self.base}_{key}_{level}" for key in self.json_keys)

    @property
    def base(self) -> str:
        """The output prefix, which names the part if there is one."""
        return self.output_prefix if self.part is None else "{}-{:05}-of-{:05}".format(self.output_prefix, *self.part)

    @property
    def needs_survey(self) -> bool:
        """Whether cleaning must know the whole input before a document can be encoded."""
        return self.drop_duplicates or self.drop_near_duplicates is not None or self.drop_boilerplate is not None

    def recipe(self) -> dict[str, Any]:
        """The options that decide what is written."""
        return {name: value for name, value in asdict(self).items() if name not in HOW}


def check_preprocess_config(config: PreprocessConfig, paths: Sequence[str]) -> None:
    """Raise `UserError` for options that are out of range or do not go together, or with the input files."""
    for name in ("workers", "log_interval"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")
    if not 0 <= config.min_chinese_share <= 1:
        raise UserError(f"--min-chinese-share must be from 0 to 1, not {config.min_chinese_share}")
    if config.drop_near_duplicates is not None and not 0 < config.drop_near_duplicates <= 1:
        raise UserError(f"--drop-near-duplicates must be above 0 and at most 1, not {config.drop_near_duplicates}")
    if config.drop_boilerplate is not None and config.drop_boilerplate < 2:
        raise UserError(f"--drop-boilerplate must be at least 2 documents, not {config.drop_boilerplate}")
    if len(set(config.json_keys)) != len(config.json_keys) or not config.json_keys:
        raise UserError("--json-keys must name every key once")
    if len(config.json_keys) > 1 and any(".txt" in os.path.basename(path)[-8:] for path in paths):
        raise UserError("several --json-keys do not go with .txt files, which hold one text a document")
