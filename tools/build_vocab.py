#!/usr/bin/env python3
"""A vocabulary from raw text."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.data.vocabulary import VocabularyConfig, build_vocabulary
from megatron.errors import main_guard


def main() -> None:
    build_vocabulary(
        parse(
            VocabularyConfig,
            prog="tools/build_vocab.py",
            description="Make a BERT vocab.txt or a SentencePiece model from raw text.",
        )
    )


if __name__ == "__main__":
    main_guard(main)
