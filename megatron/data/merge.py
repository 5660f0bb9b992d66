"""Indexed datasets merged into one: the parts of a preprocessing run, or any that go together."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron.data.card import merge_cards, merged_files, read_card, summary, write_card
from megatron.data.indexed import IndexedDataset
from megatron.data.join import Part, join_datasets
from megatron.data.progress import copy_progress
from megatron.data.provenance import LINE_BITS, read_sources
from megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merging"""

    input: tuple[str, ...]
    """Datasets in the order in which they are merged: PREFIX of PREFIX.idx, globs of such, or folders of datasets (by
    name)."""
    output_prefix: str
    """Output path without the ending `.bin`."""


def merge_datasets(config: MergeConfig) -> None:
    """Run `tools/merge_datasets.py`. The parts of a run (`--shard`) give the bytes of the run in one piece.

    Raises `UserError` for datasets that are missing, damaged, or do not go together.
    """
    prefixes = find_datasets(config.input)
    if os.path.realpath(f"{config.output_prefix}.idx") in {os.path.realpath(f"{prefix}.idx") for prefix in prefixes}:
        raise UserError(f"--output-prefix {config.output_prefix} is one of the inputs, which it would replace")
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    cards = {prefix: card for prefix in prefixes if (card := read_card(prefix)) is not None}
    words = _all_or_none(prefixes, [dataset.words is not None for dataset in datasets], "words")
    for dataset in datasets:
        if dataset.dtype != datasets[0].dtype:
            raise UserError(
                f"{dataset.prefix} does not go with {datasets[0].prefix}: its tokens are {dataset.dtype}, not "
                f"{datasets[0].dtype}; they belong to different vocabularies"
            )
    card = merge_cards(cards) if len(cards) == len(prefixes) else None
    if card is None:
        named = next(prefix for prefix in prefixes if prefix not in cards)
        print(f"{named}.json is missing: whether the vocabularies agree is not checked, and no card is written")
    sources = card is not None and all(_has_sources(dataset) for dataset in datasets)
    table = {file: number for number, file in enumerate(merged_files([card["files"] for card in cards.values()]))}
    parts = [
        Part(
            prefix=prefix, file_numbers=np.array([table[file] for file in cards[prefix]["files"]]) if sources else None
        )
        for prefix in prefixes
    ]
    total = sum(dataset.num_tokens * dataset.dtype.itemsize for dataset in datasets)
    print(f"{len(prefixes)} datasets, {total / 1e6:,.1f} MB of tokens", flush=True)
    join_datasets(parts, config.output_prefix, words=words, sources=sources, copied=copy_progress(total))
    if card is not None:
        write_card(config.output_prefix, card)
        print(summary(config.output_prefix, card), flush=True)


def find_datasets(inputs: Sequence[str]) -> list[str]:
    """The prefixes that `--input` names, in order; raises `UserError` for what is no dataset, or named twice."""
    prefixes: list[str] = []
    for item in inputs:
        if os.path.isdir(item):
            found = sorted(glob.glob(os.path.join(glob.escape(item), "*.idx")))
        elif os.path.isfile(f"{item}.idx"):
            found = [f"{item}.idx"]
        else:
            found = sorted(glob.glob(f"{item}.idx") or [path for path in glob.glob(item) if path.endswith(".idx")])
        if not found:
            raise UserError(f"--input {item}: no dataset PREFIX.idx, no glob or folder of them")
        prefixes += [path.removesuffix(".idx") for path in found]
    for i, prefix in enumerate(prefixes):
        if os.path.realpath(prefix) in {os.path.realpath(other) for other in prefixes[:i]}:
            raise UserError(f"--input names {prefix} twice; its documents would count double")
    return prefixes


def _all_or_none(prefixes: Sequence[str], present: Sequence[bool], suffix: str) -> bool:
    if any(present) and not all(present):
        with_it, without = prefixes[present.index(True)], prefixes[present.index(False)]
        raise UserError(
            f"{without} does not go with {with_it}: it has no .{suffix} beside it; preprocess it again, or remove "
            f"the .{suffix} of the others"
        )
    return all(present)


def _has_sources(dataset: IndexedDataset) -> bool:
    sources = read_sources(dataset.prefix)
    if sources is None:
        return False
    files = len((read_card(dataset.prefix) or {"files": []})["files"])
    damaged = len(sources) != dataset.num_documents
    if damaged or (len(sources) and int(sources.max()) >> LINE_BITS >= files):
        raise UserError(
            f"{dataset.prefix}.sources does not fit the dataset: {len(sources)} entries for {dataset.num_documents} "
            f"documents of {files} files; remove it, or preprocess the corpus again"
        )
    return True
