"""Tokenizers: text to ids with the characters each token stands for.

WordPiece (Devlin et al., 2018) is the `tokenizers` library set up as Hugging Face's `BertTokenizer` sets it up, so the
ids are those of the exported model. SentencePiece (Kudo and Richardson, 2018) models must hold the special pieces of
BERT; `tools/build_vocab.py` writes such models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from megatron._C import WordPiece
from megatron.errors import UserError
from megatron.files import read_lines

WORDPIECE_KINDS = ("BertWordPieceCase", "BertWordPieceLowerCase")
SENTENCEPIECE_KIND = "SentencePieceTokenizer"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Encoded = tuple[list[int], list[tuple[int, int]]]
"""Ids of a text, and for each the characters [begin, end) of the text that it stands for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary and how text becomes ids of it."""

    kind: str
    tokens: tuple[str, ...]
    """Token of each id."""
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    random_ids: NDArray[np.int32]
    """Ids that may replace a masked token: no special token, no [unusedN]."""
    encode_batch: Callable[[Sequence[str]], list[Encoded]] = field(repr=False)
    """Texts to ids, without special tokens and without truncation."""
    wordpiece: WordPiece | None = field(default=None, repr=False)
    """The same for whole corpora, in C++; None for SentencePiece."""

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @cached_property
    def vocabulary_hash(self) -> str:
        """SHA-256 of the tokens, one a line."""
        return hashlib.sha256("\n".join(self.tokens).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def continues_word(self) -> NDArray[np.bool_]:
        """For each id, whether the token can only stand inside a word (`##` of WordPiece). Shape [vocab_size]."""
        inside = [self.kind in WORDPIECE_KINDS and token.startswith("##") for token in self.tokens]
        return np.array(inside, dtype=np.bool_)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.encode_batch([text])[0][0]


def load_tokenizer(kind: str, vocab_file: str | Path | None = None, model_file: str | Path | None = None) -> Tokenizer:
    """The tokenizer of Megatron's `--tokenizer-type`, from a vocab.txt or a SentencePiece model.

    Raises `UserError` for an unknown kind and for a file that is absent, of another kind, or lacks special tokens.
    """
    if kind in WORDPIECE_KINDS:
        if model_file is not None:
            raise UserError(f"--tokenizer-model does not go with --tokenizer-type {kind}; give --vocab-file")
        if vocab_file is None:
            raise UserError(f"--tokenizer-type {kind} needs --vocab-file FILE (one token a line)")
        return _load_wordpiece(kind, Path(vocab_file))
    if kind == SENTENCEPIECE_KIND:
        if vocab_file is not None:
            raise UserError(f"--vocab-file does not go with --tokenizer-type {kind}; give --tokenizer-model")
        if model_file is None:
            raise UserError(f"--tokenizer-type {kind} needs --tokenizer-model FILE (a SentencePiece model)")
        return _load_sentencepiece(Path(model_file))
    known = ", ".join((*WORDPIECE_KINDS, SENTENCEPIECE_KIND))
    raise UserError(f"--tokenizer-type {kind} is unknown; there are: {known}")


def wordpiece_backend(tokens: Sequence[str], *, lower_case: bool) -> Backend:
    """The `tokenizers` object that Hugging Face's `BertTokenizer` builds for the same vocabulary."""
    backend = Backend(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return backend


def _load_wordpiece(kind: str, path: Path) -> Tokenizer:
    tokens = _read_vocabulary(path)
    backend = wordpiece_backend(tokens, lower_case=kind == "BertWordPieceLowerCase")

    def encode_batch(texts: Sequence[str]) -> list[Encoded]:
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode_word(word: str) -> Encoded:
        encoding = backend.encode(word, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    tokenizer = _tokenizer(kind, path, tokens, encode_batch, reserved=frozenset())
    wordpiece = WordPiece(
        vocabulary=tokens,
        special=SPECIAL_TOKENS,
        unknown="[UNK]",
        lower_case=kind == "BertWordPieceLowerCase",
        library=encode_word,
    )
    return replace(tokenizer, wordpiece=wordpiece)


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    tokens = read_lines(path, "vocabulary")
    lines: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if not token:
            raise UserError(f"vocabulary {path}:{number}: an empty line; every line must be a token")
        if token in lines:
            raise UserError(f"vocabulary {path}:{number}: {token!r} stands already in line {lines[token]}; remove one")
        lines[token] = number
    return tuple(tokens)


def _load_sentencepiece(path: Path) -> Tokenizer:
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UserError(f"SentencePiece model {path}: {error.strerror}") from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise UserError(f"{path} is not a SentencePiece model") from None
    size = processor.get_piece_size()
    if not size:
        raise UserError(f"{path} is not a SentencePiece model")
    tokens = tuple(processor.id_to_piece(i) for i in range(size))
    reserved = frozenset(
        i
        for i in range(size)
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i) or processor.is_byte(i)
    )

    def encode_batch(texts: Sequence[str]) -> list[Encoded]:
        mappings = processor.encode(list(texts), out_type="offset_mapping", num_threads=1)
        return [(mapping["ids"], mapping["offsets"]) for mapping in mappings]

    return _tokenizer(SENTENCEPIECE_KIND, path, tokens, encode_batch, reserved=reserved, unk_id=processor.unk_id())


def _tokenizer(
    kind: str,
    path: Path,
    tokens: tuple[str, ...],
    encode_batch: Callable[[Sequence[str]], list[Encoded]],
    *,
    reserved: frozenset[int],
    unk_id: int | None = None,
) -> Tokenizer:
    ids = {token: i for i, token in enumerate(tokens)}
    if unk_id is not None:
        ids["[UNK]"] = unk_id
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; make a vocabulary with tools/build_vocab.py")
    special = {ids[token] for token in SPECIAL_TOKENS}
    usable = [
        i
        for i, token in enumerate(tokens)
        if i not in special and i not in reserved and not re.fullmatch(r"\[unused\d+\]", token)
    ]
    return Tokenizer(
        kind=kind,
        tokens=tokens,
        pad_id=ids["[PAD]"],
        unk_id=ids["[UNK]"],
        cls_id=ids["[CLS]"],
        sep_id=ids["[SEP]"],
        mask_id=ids["[MASK]"],
        random_ids=np.array(usable, dtype=np.int32),
        encode_batch=encode_batch,
    )
