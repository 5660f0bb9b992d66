#!/usr/bin/env python3
"""Raw text to indexed token files for pre-training."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.data.preprocess import PreprocessConfig, preprocess
from megatron.errors import main_guard


def main() -> None:
    preprocess(
        parse(
            PreprocessConfig,
            prog="tools/preprocess_data.py",
            description="Turn raw text into indexed token files for pre-training.",
        )
    )


if __name__ == "__main__":
    main_guard(main)
