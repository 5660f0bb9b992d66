"""Megatron's indexed token files: `PREFIX.bin` and `PREFIX.idx`, byte for byte, and our `PREFIX.words` beside them.

The .bin holds the tokens of all sentences without a header. The .idx (little-endian) holds 9 bytes magic, uint64
version 1, uint8 dtype code, uint64 S sentences, uint64 D document entries, int32 [S] tokens per sentence, int64 [S]
byte offset of each sentence in the .bin, int64 [D] first sentence of each document, ending with S.
The optional .words holds 8 bytes magic, uint64 token count, and one bit per token of the .bin (packed from the lowest
bit up): 1 where a token starts a word. Ids stay those of the tokenizer; no `##` marks are put into them.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron.errors import UserError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
WORDS_MAGIC = b"MWORDS\x00\x01"
HEADER = struct.Struct("<9sQBQQ")
WORDS_HEADER = struct.Struct("<8sQ")
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()
}
CHUNK = 1 << 20
"""Elements handled at once, so that memory does not grow with the corpus."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Megatron's rule: uint16 for vocabularies below 65500, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class IndexedDataset:
    """Read-only view of an indexed corpus; every array is mapped from the files and lives as long as it is used.

    `dtype` of the tokens; `tokens` [all tokens]; `sizes` int32 [sentences] in tokens; `pointers` int64 [sentences] in
    bytes; `document_index` int64 [documents + 1]: document d is sentences [document_index[d], document_index[d + 1]);
    `words` uint8 bits (see above) or None.

    Raises `UserError` where a file is missing, empty, truncated, of another format, or inconsistent.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        index, bin_file = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index, bin_file):
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist: --data-path takes PREFIX of PREFIX.idx and PREFIX.bin, "
                    "as tools/preprocess_data.py writes them"
                )
            if path.stat().st_size == 0:
                raise UserError(f"{path} is empty: preprocess the corpus again")
        self.dtype, sentences, entries = read_header(index)
        with index.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        raw = np.frombuffer(mapped, np.uint8)
        lengths_at, pointers_at = HEADER.size, HEADER.size + 4 * sentences
        documents_at = pointers_at + 8 * sentences
        # The header is 34 bytes long, so none of these arrays is aligned: NumPy copes, C++ must load by memcpy.
        self.sizes: np.ndarray = raw[lengths_at:pointers_at].view("<i4")
        self.pointers: np.ndarray = raw[pointers_at:documents_at].view("<i8")
        self.document_index: np.ndarray = raw[documents_at : documents_at + 8 * entries].view("<i8")
        if bin_file.stat().st_size % self.dtype.itemsize:
            raise UserError(
                f"{bin_file} is truncated: {bin_file.stat().st_size} bytes are no whole number of "
                f"{self.dtype.itemsize}-byte tokens; preprocess the corpus again"
            )
        self.tokens: np.ndarray = np.memmap(bin_file, mode="r", dtype=self.dtype)
        self._check_arrays()
        mapped.madvise(mmap.MADV_DONTNEED)  # the checks touched every page
        self.words = self._open_words()

    @property
    def dtype_code(self) -> int:
        """Code of `dtype` in the .idx."""
        return next(code for code, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def num_documents(self) -> int:
        return len(self.document_index) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def sentence(self, number: int) -> np.ndarray:
        """Token ids of one sentence, [tokens], in the file's dtype."""
        start = int(self.pointers[number]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[number])]

    def word_starts(self, number: int) -> np.ndarray | None:
        """Bool [tokens] of one sentence: True where a word starts; None without a .words file."""
        if self.words is None:
            return None
        start = int(self.pointers[number]) // self.dtype.itemsize
        stop = start + int(self.sizes[number])
        bits = np.unpackbits(self.words[start // 8 : (stop + 7) // 8], bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(bool)

    @cached_property
    def largest_token(self) -> int:
        """The largest token id of the corpus (one pass over the .bin); negative ids are a `UserError`."""
        largest = 0
        with open(f"{self.prefix}.bin", "rb") as file:  # read, not mapped: the pages need not stay in this process
            while len(chunk := np.fromfile(file, self.dtype, CHUNK)):
                largest = max(largest, int(chunk.max()))
                if int(chunk.min()) < 0:
                    raise UserError(f"{self.prefix}.bin holds a negative token id: preprocess the corpus again")
        return largest

    def check_card(self, vocabulary_hash: str) -> None:
        """Raise `UserError` if there is a data card and it was made with another vocabulary."""
        card = Path(f"{self.prefix}.json")
        if not card.is_file():
            return
        try:
            content = json.loads(card.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{card} is no readable data card ({error}): remove it or preprocess again") from None
        written = content.get("vocabulary_hash") if isinstance(content, dict) else None
        if written is not None and written != vocabulary_hash:
            raise UserError(
                f"{self.prefix} was preprocessed with another vocabulary (data card {str(written)[:12]}, "
                f"--vocab-file or --tokenizer-model {vocabulary_hash[:12]}): give the vocabulary of the "
                "corpus or preprocess it again"
            )

    def _check_arrays(self) -> None:
        """Every sentence lies inside the .bin, and documents are ascending runs of sentences that cover them all."""
        token_bytes = self.num_tokens * self.dtype.itemsize
        for start in range(0, self.num_sentences, CHUNK):
            sizes = self.sizes[start : start + CHUNK].astype(np.int64)
            pointers = self.pointers[start : start + CHUNK]
            if sizes.min() < 0 or pointers.min() < 0:
                raise UserError(f"{self.prefix}.idx is damaged: negative length or offset of a sentence")
            # Compared without adding, which hostile numbers could overflow.
            if pointers.max() > token_bytes or (token_bytes - pointers < sizes * self.dtype.itemsize).any():
                raise UserError(
                    f"{self.prefix}.bin is truncated: it has {token_bytes} bytes, the index names more; "
                    "copy it again or preprocess the corpus again"
                )
            if (pointers % self.dtype.itemsize).any():
                raise UserError(f"{self.prefix}.idx is damaged: a sentence does not start at a whole token")
        documents = self.document_index
        if len(documents) < 2 or documents[0] != 0 or documents[-1] != self.num_sentences:
            raise UserError(
                f"{self.prefix}.idx is damaged: its documents do not cover its {self.num_sentences} sentences"
            )
        for start in range(0, len(documents) - 1, CHUNK):
            part = documents[start : start + CHUNK + 1]
            if (part[1:] < part[:-1]).any():
                raise UserError(f"{self.prefix}.idx is damaged: its document index is not ascending")

    def _open_words(self) -> np.ndarray | None:
        path = Path(f"{self.prefix}.words")
        if not path.is_file():
            return None
        expected = WORDS_HEADER.size + (self.num_tokens + 7) // 8
        with path.open("rb") as file:
            header = file.read(WORDS_HEADER.size)
        if len(header) < WORDS_HEADER.size or not header.startswith(WORDS_MAGIC):
            raise UserError(f"{path} is no word-boundary file: preprocess the corpus again")
        count = WORDS_HEADER.unpack(header)[1]
        if count != self.num_tokens or path.stat().st_size != expected:
            raise UserError(
                f"{path} does not fit {self.prefix}.bin: {count} tokens in {path.stat().st_size} bytes, "
                f"expected {self.num_tokens} in {expected}; preprocess the corpus again"
            )
        words: np.ndarray = np.memmap(path, mode="r", dtype=np.uint8, offset=0)[WORDS_HEADER.size :]
        return words


def check_largest_token(prefix: str, largest: int, vocab_size: int) -> None:
    """Raise `UserError` if the largest token id of a corpus is not in a vocabulary of `vocab_size` tokens."""
    if largest >= vocab_size:
        raise UserError(
            f"{prefix}.bin holds token id {largest}, but the vocabulary has {vocab_size} tokens: give the "
            "vocabulary that the corpus was preprocessed with"
        )


def read_header(index: Path) -> tuple[np.dtype, int, int]:
    """Dtype, sentences and document entries of an .idx file, whose size is checked against them."""
    size = index.stat().st_size
    with index.open("rb") as file:
        header = file.read(HEADER.size)
    if header.startswith(LEGACY_MAGIC):
        raise UserError(
            f"{index} is in the old 'lazy/cached' format (TNTIDX), which is not read: preprocess the corpus again"
        )
    if header[: len(INDEX_MAGIC)] != INDEX_MAGIC[: len(header)]:
        raise UserError(f"{index} is no index of a Megatron corpus (it starts with {header[:9]!r}): check --data-path")
    if len(header) < HEADER.size:
        raise UserError(f"{index} is truncated: {size} bytes are less than its header; preprocess the corpus again")
    _, version, code, sentences, entries = HEADER.unpack(header)
    if version != 1:
        raise UserError(f"{index} has format version {version}, only 1 is known")
    if code not in DTYPES:
        raise UserError(f"{index} has dtype code {code}, which is no integer type: preprocess the corpus again")
    if sentences == 0:
        raise UserError(f"{index} holds no sentence: preprocess a corpus that has text")
    expected = HEADER.size + 12 * sentences + 8 * entries
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise UserError(
            f"{index} is {state}: {size} bytes, expected {expected} for {sentences} sentences and "
            f"{entries - 1} documents; copy it again or preprocess the corpus again"
        )
    return DTYPES[code], sentences, entries


class IndexedWriter:
    """Writes PREFIX.bin, .idx and (with `words`) .words under temporary names; `finish` makes them appear, .idx last.

    Sentences and documents may come in parts of any size: memory does not grow with the corpus. Raises `UserError`
    where the files cannot be written. `finish` or `abort` ends it.
    """

    def __init__(self, prefix: str, vocab_size: int, words: bool) -> None:
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.num_tokens = self.num_sentences = self.num_documents = 0
        self._loose_bits = np.zeros(0, dtype=bool)  # fewer than 8, of the byte of .words not yet complete
        self._files: dict[str, BinaryIO] = {}
        try:
            Path(prefix).parent.mkdir(parents=True, exist_ok=True)
            for part in ("bin", "words", "lengths", "documents") if words else ("bin", "lengths", "documents"):
                self._files[part] = open(self._temporary(part), "w+b")  # noqa: SIM115 (closed by abort)
        except OSError as error:
            self.abort()
            raise UserError(f"cannot write {prefix}.bin: {error.strerror}") from None
        if words:
            self._write("words", WORDS_HEADER.pack(WORDS_MAGIC, 0))

    def add(
        self, tokens: np.ndarray, lengths: np.ndarray, documents: np.ndarray, word_starts: np.ndarray | None = None
    ) -> None:
        """Append whole documents.

        `tokens` integers [tokens], all sentences after each other; `lengths` [sentences] in tokens; `documents`
        [documents] in sentences; `word_starts` bool [tokens], given exactly if the writer has words.
        Raises `ValueError` where they do not fit together or an id is not in the vocabulary.
        """
        tokens, lengths, documents = np.asarray(tokens), np.asarray(lengths), np.asarray(documents)
        if int(lengths.sum()) != len(tokens) or int(documents.sum()) != len(lengths):
            raise ValueError(
                f"{len(tokens)} tokens, {len(lengths)} sentences of {lengths.sum()} tokens and documents "
                f"of {documents.sum()} sentences do not fit together"
            )
        if (len(lengths) and (lengths.min() < 0 or lengths.max() >= 2**31)) or (len(documents) and documents.min() < 0):
            raise ValueError("a sentence or a document has a length outside [0, 2^31)")
        if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            raise ValueError(
                f"token ids {tokens.min()} to {tokens.max()} are outside the vocabulary of {self.vocab_size}"
            )
        if (word_starts is not None) != ("words" in self._files):
            raise ValueError("word starts must be given exactly when the writer was made with words")
        self._write("bin", tokens.astype(self.dtype).tobytes())
        self._write("lengths", lengths.astype("<i4").tobytes())
        self._write("documents", documents.astype("<i8").tobytes())
        if word_starts is not None:
            if len(word_starts) != len(tokens):
                raise ValueError(f"{len(word_starts)} word starts for {len(tokens)} tokens")
            bits = np.concatenate([self._loose_bits, np.asarray(word_starts, dtype=bool)])
            whole = len(bits) - len(bits) % 8
            self._write("words", np.packbits(bits[:whole], bitorder="little").tobytes())
            self._loose_bits = bits[whole:]
        self.num_tokens += len(tokens)
        self.num_sentences += len(lengths)
        self.num_documents += len(documents)

    def finish(self) -> None:
        """Complete the files and make them appear; raises `UserError` if nothing was added."""
        if self.num_tokens == 0:
            self.abort()
            raise UserError(f"no text was found, so there is nothing to write to {self.prefix}")
        parts = [part for part in ("bin", "words") if part in self._files]
        try:
            if "words" in self._files:
                self._write("words", np.packbits(self._loose_bits, bitorder="little").tobytes())
                self._files["words"].seek(0)
                self._write("words", WORDS_HEADER.pack(WORDS_MAGIC, self.num_tokens))
            self._files["idx"] = open(self._temporary("idx"), "w+b")  # noqa: SIM115 (closed by abort)
            self._write_index()
            for part in (*parts, "idx"):
                self._files[part].flush()
                os.fsync(self._files[part].fileno())
            # Nothing may pair new files with old ones: the old index goes first, the new one comes last.
            Path(f"{self.prefix}.idx").unlink(missing_ok=True)
            Path(f"{self.prefix}.words").unlink(missing_ok=True)
            for part in (*parts, "idx"):
                os.replace(self._temporary(part), f"{self.prefix}.{part}")
            folder = os.open(Path(self.prefix).parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise UserError(f"cannot write {self.prefix}.idx: {error.strerror}") from None
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove what is unfinished; harmless after `finish`."""
        for part, file in self._files.items():
            with suppress(OSError):  # a full disk says so once more
                file.close()
            Path(self._temporary(part)).unlink(missing_ok=True)
        self._files = {}

    def _write_index(self) -> None:
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        self._write("idx", HEADER.pack(INDEX_MAGIC, 1, code, self.num_sentences, self.num_documents + 1))
        for lengths in self._chunks("lengths", "<i4"):
            self._write("idx", lengths.tobytes())
        self._write_running_sums("lengths", "<i4", self.dtype.itemsize, inclusive=False)
        self._write("idx", bytes(8))
        self._write_running_sums("documents", "<i8", 1, inclusive=True)

    def _write_running_sums(self, part: str, dtype: str, scale: int, *, inclusive: bool) -> None:
        total = 0
        for chunk in self._chunks(part, dtype):
            scaled = chunk.astype(np.int64) * scale
            sums = total + np.cumsum(scaled)
            self._write("idx", (sums if inclusive else sums - scaled).astype("<i8").tobytes())
            total = int(sums[-1])

    def _chunks(self, part: str, dtype: str) -> Iterator[np.ndarray]:
        file, itemsize = self._files[part], np.dtype(dtype).itemsize
        file.seek(0)
        while data := file.read(CHUNK * itemsize):
            yield np.frombuffer(data, dtype=dtype)

    def _write(self, part: str, data: bytes) -> None:
        try:
            self._files[part].write(data)
        except OSError as error:
            self.abort()
            raise UserError(f"cannot write {self.prefix}.{part}: {error.strerror}") from None

    def _temporary(self, part: str) -> str:
        return f"{self.prefix}.{part}.tmp-{os.getpid()}"
