from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

openmp: bool

def keep_memory() -> bool: ...
attention_targets: list[str]

EncodedTexts = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_], dict[str, int]]

class PieceRule:
    def __init__(self, *, longest: int, slice: int, fewest: int, full_sentences: bool) -> None: ...

class TargetRule:
    def __init__(self, *, longest: int, shortest: int, short_probability: float, key: int) -> None: ...
    def __call__(self, sentence: int, offset: int) -> int: ...

SampleSource = tuple[
    np.ndarray, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, TargetRule, int
]
"""Tokens, dtype code, sizes, pointers, document index, word bits, rows, targets, key."""

class Blend:
    def __init__(self, weights: Sequence[float]) -> None: ...
    def assign(self, first: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
    def taken(self, count: int) -> list[int]: ...

class Assembler:
    def __init__(
        self,
        *,
        sources: list[SampleSource],
        weights: Sequence[float],
        seq_length: int,
        objective: int,
        mask_share: tuple[float, float, int],
        max_ngrams: int,
        pad: int,
        cls: int,
        sep: int,
        mask: int,
        pieces: PieceRule,
        vocabulary: NDArray[np.int32],
        random_ids: NDArray[np.int32],
    ) -> None: ...
    def assemble(self, first: int, count: int) -> tuple[NDArray[np.int64], ...]: ...
    def locate(self, sample: int) -> tuple[int, list[int]]: ...
    def taken(self, count: int) -> list[int]: ...

class Jieba:
    def __init__(
        self,
        *,
        dictionary: bytes,
        user_words: Sequence[tuple[str, int | None]],
        start: NDArray[np.float64],
        transition: NDArray[np.float64],
        emission: NDArray[np.float64],
    ) -> None: ...
    def __call__(self, text: str) -> list[str]: ...

class WordPiece:
    def __init__(
        self,
        *,
        vocabulary: Sequence[str],
        special: Sequence[str],
        unknown: str,
        lower_case: bool,
        library: Callable[[str], tuple[list[int], list[tuple[int, int]]]],
    ) -> None: ...
    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...

class SentenceRules:
    def __init__(
        self,
        *,
        classes: NDArray[np.uint16],
        asides: Sequence[tuple[str, str, int, bool]],
        before_name: Sequence[str],
        before_number: Sequence[str],
        may_end: Sequence[str],
        ends_like_a_word: Sequence[str],
        first_words: Sequence[str],
        numerals: str,
        longest_word: int,
        most_closers: int,
    ) -> None: ...
    def split(self, text: str) -> list[str]: ...

class TextEncoder:
    def __init__(self, *, wordpiece: WordPiece, jieba: Jieba | None, rules: SentenceRules | None) -> None: ...
    def encode(self, documents: Sequence[str]) -> EncodedTexts: ...
    def encode_lines(self, lines: Sequence[bytes | None], keys: Sequence[str]) -> list[EncodedTexts] | None: ...

class SharedGroup:
    def __init__(
        self, name: str, rank: int, size: int, slot_bytes: int, create: bool, *, timeout_seconds: float
    ) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_reduce(self, address: int, count: int, dtype_code: int, operation_code: int = 0) -> None: ...
    def reduce_scatter(
        self, in_address: int, out_address: int, count_out: int, dtype_code: int, operation_code: int = 0
    ) -> None: ...
    def all_gather(self, in_address: int, out_address: int, bytes: int) -> None: ...
    def barrier(self) -> None: ...

most_parts: int
most_columns: int

def parts_of(rows: int, columns: int) -> int: ...
def load_cuda_kernels(path: str) -> None: ...
def dropout(
    x: int,
    y: int,
    rows: int,
    columns: int,
    keys: int,
    site_key: int,
    probability: float,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def embedding(
    tables: Sequence[int],
    sizes: Sequence[int],
    ids: int,
    out: int,
    rows: int,
    columns: int,
    dtype_code: int,
    threads: int,
) -> None: ...
def embedding_gradients(
    into: Sequence[int],
    ids: int,
    gradient: int,
    rows: int,
    columns: int,
    dtype_code: int,
    threads: int,
) -> None: ...
def add_norm(
    block: int,
    bias: int,
    residual: int,
    weight: int,
    shift: int,
    sum: int,
    normalized: int,
    mean: int,
    rstd: int,
    rows: int,
    columns: int,
    epsilon: float,
    keys: int,
    site_key: int,
    probability: float,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def add_norm_gradients(
    of_sum: int,
    of_normalized: int,
    sum: int,
    weight: int,
    mean: int,
    rstd: int,
    of_residual: int,
    of_block: int,
    of_bias: int,
    of_weight: int,
    of_shift: int,
    workspace: int,
    rows: int,
    columns: int,
    keys: int,
    site_key: int,
    probability: float,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def bias_activation(
    x: int,
    bias: int,
    y: int,
    rows: int,
    columns: int,
    activation_code: int,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def bias_activation_gradients(
    of_y: int,
    x: int,
    bias: int,
    of_x: int,
    of_bias: int,
    workspace: int,
    rows: int,
    columns: int,
    activation_code: int,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def cross_entropy(
    logits: int,
    bias: int,
    labels: int,
    largest: int,
    total: int,
    target: int,
    rows: int,
    columns: int,
    valid: int,
    start: int,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def cross_entropy_gradients(
    logits: int,
    bias: int,
    labels: int,
    largest: int,
    total: int,
    factor: int,
    of_bias: int,
    workspace: int,
    rows: int,
    columns: int,
    valid: int,
    start: int,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def softmax(
    scores: int,
    lengths: int,
    probabilities: int,
    dropped: int,
    rows: int,
    columns: int,
    sample_rows: int,
    scale: float,
    keys: int,
    site_key: int,
    probability: float,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def softmax_gradients(
    of_dropped: int,
    probabilities: int,
    of_scores: int,
    rows: int,
    columns: int,
    scale: float,
    keys: int,
    site_key: int,
    probability: float,
    dtype_code: int,
    place: tuple[int, int],
) -> None: ...
def add_rows(
    into: int, x: int, workspace: int, rows: int, columns: int, dtype_code: int, place: tuple[int, int]
) -> None: ...
def adamw(
    weights: int,
    gradients: int,
    first: int,
    second: int,
    copy: int,
    count: int,
    factor: float,
    learning_rate: float,
    decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    place: tuple[int, int],
) -> None: ...
def sum_of_squares(x: int, total: int, workspace: int, count: int, place: tuple[int, int]) -> None: ...
def attention(
    qkv: int,
    context: int,
    sequence: int,
    batch: int,
    heads: int,
    size: int,
    lengths: int,
    keys: int,
    site_key: int,
    probability: float,
    target: str,
    dtype_code: int,
    threads: int,
) -> None: ...
def attention_gradients(
    qkv: int,
    of_context: int,
    of_qkv: int,
    sequence: int,
    batch: int,
    heads: int,
    size: int,
    lengths: int,
    keys: int,
    site_key: int,
    probability: float,
    target: str,
    dtype_code: int,
    threads: int,
) -> None: ...
def permute(n: int, key: int, places: NDArray[np.int64]) -> NDArray[np.int64]: ...
def sample_index(
    *,
    sizes: np.ndarray,
    document_index: np.ndarray,
    documents: tuple[int, int],
    split_range: tuple[int, int],
    split_key: int,
    pieces: PieceRule,
    targets: TargetRule,
) -> tuple[NDArray[np.uint32], int, int]: ...
def checksum(rows: np.ndarray, first: int) -> int: ...
