"""Corpora, samples and masking."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora, samples and masking."""

    data_path: tuple[str, ...] = ()
    """One prefix of preprocessed files, or WEIGHT PREFIX WEIGHT PREFIX ... to blend corpora."""
    split: str = "969,30,1"
    """Shares of documents for training, validation and test."""
    data_cache_path: str | None = None
    """Folder for sample indices [default: a folder cache/ beside each corpus]."""
    seq_length: int = 0
    """Tokens of a sample, [CLS] and [SEP] included."""
    mask_prob: float = 0.15
    """Share of the tokens to predict."""
    short_seq_prob: float = 0.1
    """Share of samples that are made shorter than --seq-length."""
    max_ngrams: int = 3
    """Longest run of consecutive words masked together."""
    num_workers: int = 2
    """Threads that assemble batches ahead of training; 0: none."""
    tokenizer_type: Literal["BertWordPieceCase", "BertWordPieceLowerCase", "SentencePieceTokenizer"] = (
        "BertWordPieceLowerCase"
    )
    """Kind of tokenizer; that of preprocessing."""
    vocab_file: str | None = None
    """vocab.txt of the WordPiece tokenizers."""
    tokenizer_model: str | None = None
    """Model file of SentencePieceTokenizer."""

    def problems(self) -> list[str]:
        """Violations of the rules of the data options, as messages."""
        found = []
        if not self.data_path:
            found.append("--data-path is required")
        if self.seq_length <= 0:
            found.append("--seq-length is required")
        elif not 8 <= self.seq_length <= 65535:
            found.append(f"--seq-length must be between 8 and 65535, not {self.seq_length}")
        for name, low, high in (("mask_prob", 0.0, 1.0), ("short_seq_prob", -1e-9, 1.0)):
            if not low < getattr(self, name) <= high:
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)} is not a probability")
        if self.max_ngrams < 1:
            found.append("--max-ngrams must be at least 1")
        if self.num_workers < 0:
            found.append("--num-workers must not be negative")
        sentencepiece = self.tokenizer_type == "SentencePieceTokenizer"
        if sentencepiece and not self.tokenizer_model:
            found.append("--tokenizer-type SentencePieceTokenizer needs --tokenizer-model FILE")
        if not sentencepiece and not self.vocab_file:
            found.append(f"--tokenizer-type {self.tokenizer_type} needs --vocab-file FILE (vocab.txt)")
        return found
