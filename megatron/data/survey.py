"""A first pass over a corpus for cleaning that must know all of it: duplicate documents and boilerplate lines.

Workers leave hashes of the documents and lines of each shard beside it; from those of all shards, in order, follows
which documents each shard must leave out, and which lines are boilerplate. The second pass encodes what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron.data.cleaning import chinese_share, hash_lines, make_character_cleaner
from megatron.data.division import Shard
from megatron.data.duplicates import hash_texts, signatures
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.progress import make_progress
from megatron.data.shard_store import Record, ShardStore
from megatron.data.shards import parse, read_blocks, text_bytes
from megatron.errors import UserError


def make_surveyor(config: PreprocessConfig, store: ShardStore) -> Callable[[Shard], Record]:
    """A function that leaves the hashes of a shard in the store: of each document that is not empty and Chinese enough.

    It raises `UserError` as the encoder of shards does.
    """
    clean = make_character_cleaner(config.normalize, config.simplify)
    progress = make_progress(store.folder)

    def survey(shard: Shard) -> Record:
        blocks: list[list[dict[str, np.ndarray]]] = [[_survey_texts([], config)] for _ in config.json_keys]
        lines = skipped = 0
        for block, disk_bytes in read_blocks(shard):
            documents, _, bad = parse(shard, block, config)
            lines += len(block.lines)
            skipped += len(bad)
            progress(len(documents), text_bytes(block), disk_bytes, 0)
            for i, arrays in enumerate(blocks):
                arrays.append(_survey_texts([clean(document[i]).strip() for document in documents], config))
        for i, arrays in enumerate(blocks):
            try:
                for name in arrays[0]:
                    whole = np.concatenate([block[name] for block in arrays])
                    np.save(f"{store.prefix(shard, i)}.{name}.npy", _repeated(whole) if name == "lines" else whole)
            except OSError as error:
                raise UserError(f"cannot write {store.folder}: {error.strerror}") from None
        return store.finish(shard, lines, skipped, (), (), ())

    return survey


def _survey_texts(texts: Sequence[str], config: PreprocessConfig) -> dict[str, np.ndarray]:
    """Whether each document is compared, bool [texts]; of those that are, hashes, signatures and lines, as asked."""
    compared = [bool(text) and chinese_share(text) >= config.min_chinese_share for text in texts]
    texts = [text for text, keep in zip(texts, compared, strict=True) if keep]
    arrays: dict[str, np.ndarray] = {"compared": np.array(compared, dtype=bool)}
    if config.drop_duplicates:
        arrays["hashes"] = hash_texts(texts)
    if config.drop_near_duplicates is not None:
        arrays["signatures"] = signatures(texts)
    if config.drop_boilerplate is not None:
        arrays["lines"] = hash_lines(texts)
    return arrays


def _repeated(lines: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Uint64 [2, lines]: the hashes that occur at least twice, and how often."""
    values, counts = np.unique(lines, return_counts=True)
    return np.stack([values[counts > 1], counts[counts > 1].astype(np.uint64)])
