"""A small made-up corpus, and the command line of a small run on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np

from megatron.data.indexed import IndexedWriter
from tests.commands import start

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = [chr(0x4E00 + i) for i in range(60)]


def write_corpus(folder: Path, *, documents: int = 60, sentences: int = 6, seed: int = 0, name: str = "corpus") -> str:
    """Documents of `sentences` sentences of two-character words; each document uses a few words. Returns the prefix."""
    draw = random.Random(seed)
    words = [(5 + i, 5 + (i * 7 + 3) % 60) for i in range(60)]
    (folder / "vocab.txt").write_text("\n".join(SPECIALS + CHARACTERS) + "\n", encoding="utf-8")
    prefix = str(folder / f"{name}_text_sentence")
    writer = IndexedWriter(prefix, vocab_size=len(SPECIALS + CHARACTERS), words=True)
    for _ in range(documents):
        topic = draw.sample(words, 6)
        texts = [[token for _ in range(draw.randint(3, 7)) for token in draw.choice(topic)] for _ in range(sentences)]
        tokens = np.array([token for text in texts for token in text])
        writer.add(
            tokens=tokens,
            lengths=np.array([len(text) for text in texts]),
            documents=np.array([sentences]),
            word_starts=np.arange(len(tokens)) % 2 == 0,
        )
    writer.finish()
    return prefix


def arguments(folder: Path, **flags: Any) -> list[str]:
    """Flags of a small run on the corpus of `folder`; a value None leaves a flag out, True makes it a switch."""
    values: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "seq_length": 48,
        "data_path": folder / "corpus_text_sentence",
        "vocab_file": folder / "vocab.txt",
        "split": "90,10,0",
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "train_iters": 6,
        "lr": 1e-3,
        "log_interval": 1,
        "eval_interval": 0,
        "eval_iters": 1,
        "num_workers": 0,
        "metrics_file": folder / "metrics.jsonl",
        **flags,
    }
    argv: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            argv.append(flag)
        elif isinstance(value, (list, tuple)):
            argv += [flag, *map(str, value)]
        elif value is not None and value is not False:
            argv += [flag, str(value)]
    return argv


def command(argv: list[str], **options: Any) -> Popen[str]:
    """Start pretrain_bert.py; options: those of `start`."""
    return start("pretrain_bert.py", *argv, **options)


def records(folder: Path, split: str = "train", name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a metrics file."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [row for row in rows if row["split"] == split]
