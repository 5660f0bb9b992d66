"""Tokens added to a model that was trained without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron.checkpoint.hub_tokenizer import SENTENCEPIECE, TokenizerFile
from megatron.config import ModelConfig
from megatron.errors import UserError
from megatron.files import read_lines

_TABLES = ("embeddings.word_embeddings.weight", "lm_head.bias")


def extend_vocabulary(
    model: ModelConfig, parameters: Mapping[str, torch.Tensor], tokenizer: TokenizerFile | None, path: Path
) -> tuple[ModelConfig, dict[str, torch.Tensor], TokenizerFile, tuple[str, ...]]:
    """Model, parameters and tokenizer with the tokens of a file, one a line; those it has already are passed over.

    New tokens get the ids after the last; rows of the word table that no token had are used first. A new row is the
    mean of the rows of the pieces into which the old vocabulary cuts its token, or of all rows where it has none: so a
    token starts near what the model saw in its place, and no new token draws probability from the old ones (Hewitt,
    "Initializing New Word Embeddings for Pretrained Language Models", 2021). Returns notices too.
    Raises `UserError` if the file cannot be read or is no list of tokens, or the tokenizer is not WordPiece.
    """
    if tokenizer is None or tokenizer.kind == SENTENCEPIECE:
        raise UserError("--extend-vocab needs a model with a WordPiece vocabulary (vocab.txt)")
    tokens = tokenizer.tokens
    ids = {token: number for number, token in enumerate(tokens)}
    listed = _read_tokens(path)
    added = [token for token in dict.fromkeys(listed) if token not in ids]
    if not added:
        raise UserError(f"--extend-vocab {path}: the model has all of its {len(listed)} tokens already")
    pieces = [_pieces(token, ids) for token in added]
    first, stop = len(tokens), len(tokens) + len(added)
    extended = dict(parameters)
    for name in _TABLES:
        if name in parameters:
            old = parameters[name]
            new = old.new_zeros(max(stop, len(old)), *old.shape[1:])
            new[: len(old)] = old
            for number, rows in enumerate(pieces, start=first):
                new[number] = old[rows].mean(0) if rows else old[:first].mean(0)
            extended[name] = new
    unlike = sum(not rows for rows in pieces)
    notices = [
        f"{len(added)} new tokens have the ids {first} to {stop - 1}: each row is the mean of those of the token's "
        "pieces" + (f", for {unlike} without any the mean of all" if unlike else "")
    ]
    several = [token for token in added if sum("\u4e00" <= character <= "\u9fff" for character in token) > 1]
    if several:
        notices.append(
            f"{len(several)} of them hold several Chinese characters ({several[0]}, ...): text is cut between those, "
            "so these tokens will not occur"
        )
    model = dataclasses.replace(model, vocab_size=max(model.vocab_size, stop))
    content = "".join(f"{token}\n" for token in (*tokens, *added)).encode()
    return model, extended, dataclasses.replace(tokenizer, content=content), tuple(notices)


def _read_tokens(path: Path) -> list[str]:
    tokens = read_lines(path, "--extend-vocab")
    for number, token in enumerate(tokens, 1):
        if not token or len(token.split()) != 1 or token != token.strip():
            raise UserError(f"--extend-vocab {path}:{number}: {token!r} is not one token; every line must be")
    return tokens


def _pieces(token: str, ids: Mapping[str, int]) -> list[int]:
    """The ids into which a vocabulary cuts a token: the longest first, a word's beginning where no inside fits."""
    text, inside = (token[2:], True) if token.startswith("##") and len(token) > 2 else (token, False)
    found: list[int] = []
    start = 0
    while start < len(text):
        for stop in range(len(text), start, -1):
            names = [f"##{text[start:stop]}", text[start:stop]] if inside or start else [text[start:stop]]
            known = [ids[name] for name in names if name in ids]
            if known:
                found.append(known[0])
                break
        else:
            stop = start + 1  # a character that the vocabulary does not have
        start = stop
    return found
