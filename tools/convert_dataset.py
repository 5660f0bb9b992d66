#!/usr/bin/env python3
"""A corpus of PaddleNLP's ERNIE-1.0 recipe turned into an indexed dataset."""

from __future__ import annotations

from megatron.arguments import parse
from megatron.data.paddle import ConvertConfig, convert_dataset
from megatron.errors import main_guard


def main() -> None:
    convert_dataset(
        parse(
            ConvertConfig,
            prog="tools/convert_dataset.py",
            description="Turn a corpus of PaddleNLP (PREFIX_ids.npy, PREFIX_idx.npz) into an indexed dataset.",
        )
    )


if __name__ == "__main__":
    main_guard(main)
