"""Corpora, samples and masking."""

from dataclasses import dataclass
from typing import Literal

DEFAULT_SPLIT = "969,30,1"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora, samples and masking."""

    data_path: tuple[str, ...] = ()
    """One prefix of preprocessed files, or WEIGHT PREFIX WEIGHT PREFIX ... to blend corpora."""
    train_data_path: tuple[str, ...] = ()
    """The same for training alone, instead of --data-path and --split."""
    valid_data_path: tuple[str, ...] = ()
    """The same for validation alone."""
    test_data_path: tuple[str, ...] = ()
    """The same for the test alone."""
    split: str = DEFAULT_SPLIT
    """Shares of documents of --data-path for training, validation and test."""
    data_cache_path: str | None = None
    """Folder for sample indices [default: a folder cache/ beside each corpus]."""
    seq_length: int = 0
    """Tokens of a sample, [CLS] and [SEP] included."""
    sentence_objective: Literal["sop", "nsp", "none"] = "sop"
    """Are two segments swapped (sop), of two documents (nsp); none is one segment, as with --bert-no-binary-head."""
    full_sentences: bool = False
    """Samples are as many whole sentences of a document as fit, and none is cut; for --sentence-objective none."""
    masking: Literal["whole-word", "token"] = "whole-word"
    """What is masked together: the tokens of a word, or nothing."""
    mask_prob: float = 0.15
    """Share of the tokens to predict."""
    mask_prob_end: float | None = None
    """Share at the end of a linear schedule that starts from --mask-prob; evaluations mask this share."""
    mask_prob_samples: int | None = None
    """Samples until --mask-prob-end is reached."""
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

    @property
    def has_own_paths(self) -> bool:
        """Whether training, validation or test have corpora of their own instead of shares of --data-path."""
        return bool(self.train_data_path or self.valid_data_path or self.test_data_path)

    @property
    def largest_mask_prob(self) -> float:
        """The largest share of tokens to predict of the run."""
        return max(self.mask_prob, self.mask_prob_end or 0.0)

    def problems(self) -> list[str]:
        """Violations of the rules of the data options, as messages."""
        found = []
        if not self.data_path and not self.has_own_paths:
            found.append("--data-path is required, or --train-data-path, --valid-data-path and --test-data-path")
        if self.data_path and self.has_own_paths:
            found.append("--data-path, which --split divides, excludes --train-, --valid- and --test-data-path")
        if not self.data_path and self.split != DEFAULT_SPLIT:
            found.append("--split divides --data-path, which is not given")
        if self.seq_length <= 0:
            found.append("--seq-length is required")
        elif not 8 <= self.seq_length <= 65535:
            found.append(f"--seq-length must be between 8 and 65535, not {self.seq_length}")
        for name, low, high in (("mask_prob", 0.0, 1.0), ("short_seq_prob", -1e-9, 1.0)):
            if not low < getattr(self, name) <= high:
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)} is not a probability")
        if (self.mask_prob_end is None) != (self.mask_prob_samples is None):
            found.append("--mask-prob-end and --mask-prob-samples go together")
        elif self.mask_prob_end is not None and self.mask_prob_samples is not None:
            if not 0 < self.mask_prob_end <= 1:
                found.append(f"--mask-prob-end {self.mask_prob_end} is not a probability")
            if self.mask_prob_samples < 1:
                found.append("--mask-prob-samples must be positive")
        if self.full_sentences and self.sentence_objective != "none":
            found.append("--full-sentences has no pairs: give --sentence-objective none")
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
