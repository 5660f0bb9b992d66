#!/usr/bin/env python3
"""Indexed datasets merged into one."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.data.merge import MergeConfig, merge_datasets
from megatron.errors import main_guard


def main() -> None:
    merge_datasets(
        parse(
            MergeConfig,
            prog="tools/merge_datasets.py",
            description="Merge indexed datasets, such as the parts of a run of tools/preprocess_data.py, into one.",
        )
    )


if __name__ == "__main__":
    main_guard(main)
