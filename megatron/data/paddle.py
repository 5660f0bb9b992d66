"""Corpora of PaddleNLP's ERNIE-1.0 recipe turned into indexed datasets.

`PREFIX_ids.npy` holds the ids of all tokens; `PREFIX_idx.npz` holds `lens`, tokens of each sentence, and `docs`, the
first sentence of each document, ending with the number of sentences. A word goes on where an id is a `##` piece,
also of a Chinese character: the tokenizer was extended by these. Here the character's own id is stored, and the
boundary in .words.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.data.indexed import CHUNK, IndexedWriter
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Conversion"""

    input: str
    """PREFIX of PREFIX_ids.npy and PREFIX_idx.npz, as PaddleNLP writes them."""
    output_prefix: str
    """Output path without the ending `.bin`."""
    vocab_file: str
    """vocab.txt of the tokenizer that made the ids, with the ## pieces of Chinese characters it was extended by."""


def convert_dataset(config: ConvertConfig) -> None:
    """Run `tools/convert_dataset.py`. Raises `UserError` for files that are missing, damaged or do not go together."""
    tokenizer = load_tokenizer("BertWordPieceCase", config.vocab_file)
    ids, lengths, documents = read_paddle(config.input)
    id_of = {token: number for number, token in enumerate(tokenizer.tokens)}
    table = np.arange(tokenizer.vocab_size)
    for number in np.flatnonzero(tokenizer.continues_word).tolist():
        piece = tokenizer.tokens[number].removeprefix("##")
        if len(piece) == 1 and "\u4e00" <= piece <= "\u9fff":
            table[number] = id_of.get(piece, number)
    writer = IndexedWriter(config.output_prefix, tokenizer.vocab_size, words=True)
    try:
        first_token = 0
        for first, last in _runs(lengths, documents):
            sentences = lengths[documents[first] : documents[last]]
            tokens = ids[first_token : first_token + int(sentences.sum())]
            first_token += len(tokens)
            if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
                raise UserError(
                    f"{config.input}_ids.npy holds token id {tokens.max()}, but {config.vocab_file} has "
                    f"{tokenizer.vocab_size} tokens: give the vocabulary of the tokenizer that made the ids, with its "
                    "added ## pieces"
                )
            document_of = np.repeat(np.arange(last - first), np.diff(documents[first : last + 1]))
            used = np.bincount(document_of[sentences > 0], minlength=last - first)
            writer.add(table[tokens], sentences[sentences > 0], used[used > 0], ~tokenizer.continues_word[tokens])
        for suffix in ("json", "sources"):  # of what these files replace
            Path(f"{config.output_prefix}.{suffix}").unlink(missing_ok=True)
        writer.finish()
    finally:
        writer.abort()
    print(
        f"{config.output_prefix}: {writer.num_documents:,} documents, {writer.num_sentences:,} sentences, "
        f"{writer.num_tokens:,} tokens",
        flush=True,
    )


def read_paddle(prefix: str) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """Ids [tokens], mapped from the file, tokens of each sentence [sentences], first sentences [documents + 1].

    Raises `UserError` where the files are missing, damaged, or do not fit together.
    """
    ids_file, index_file = Path(f"{prefix}_ids.npy"), Path(f"{prefix}_idx.npz")
    try:
        ids = np.load(ids_file, mmap_mode="r", allow_pickle=False)
        with np.load(index_file, allow_pickle=False) as index:
            lengths, documents = index["lens"].astype(np.int64), index["docs"].astype(np.int64)
    except FileNotFoundError as error:
        raise UserError(f"--input {prefix}: {error.filename} does not exist") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"--input {prefix}: {ids_file.name} or {index_file.name} is damaged: {error}") from None
    if ids.ndim != 1 or lengths.ndim != 1 or documents.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"--input {prefix}: the arrays are not flat lists of integers")
    if len(lengths) and lengths.min() < 0 or int(lengths.sum()) != len(ids):
        raise UserError(f"--input {prefix}: sentences of {lengths.sum()} tokens do not fit {len(ids)} ids")
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != len(lengths) or (np.diff(documents) < 0).any():
        raise UserError(f"--input {prefix}: its documents do not cover its {len(lengths)} sentences in order")
    return ids, lengths, documents


def _runs(lengths: NDArray[np.int64], documents: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Documents [first, last) of about `CHUNK` tokens each."""
    ends = np.concatenate([[0], np.cumsum(lengths)])[documents]
    first, last = 0, len(documents) - 1
    while first < last:
        stop = max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK, side="right")) - 1)
        yield first, stop
        first = stop
