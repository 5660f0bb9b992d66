"""Sample assembly at length 512: ours against megatron-core's dataset, one core, CPU time, interleaved rounds.

    taskset -c 0 python benchmarks/samples.py --peer-python OTHER/bin/python \
        --data-path corpus_text_sentence --vocab-file vocab.txt

The corpus is one of tools/preprocess_data.py with word boundaries; the peer gets the same text with the boundaries as
`##` marks in the ids, which is how it knows words. Both mask whole words and n-grams up to 3 in pairs of segments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peer import megatron_core, summary

from megatron.config import DataConfig
from megatron.data.batches import Split, open_splits
from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.tokenizer import Tokenizer, load_tokenizer

RESULTS = Path(__file__).resolve().parent / "results" / "samples.json"
SEQ_LENGTH = 512


def with_marks(dataset: IndexedDataset, tokenizer: Tokenizer, prefix: Path) -> None:
    """The corpus with `##X` for each token that goes on with a word, where the vocabulary has it."""
    if dataset.words is None:
        raise SystemExit(f"{dataset.prefix} has no word boundaries: preprocess with --segmenter jieba")
    ids = {token: number for number, token in enumerate(tokenizer.tokens)}
    marked = np.array([ids.get(f"##{token}", number) for number, token in enumerate(tokenizer.tokens)])
    starts = np.unpackbits(dataset.words, count=dataset.num_tokens, bitorder="little").astype(bool)
    tokens = np.where(starts, dataset.tokens, marked[dataset.tokens])
    writer = IndexedWriter(str(prefix), tokenizer.vocab_size, words=False)
    writer.add(tokens, dataset.sizes, np.diff(dataset.document_index))
    writer.finish()


def ours(split: Split, first: int, count: int, batch: int) -> dict[str, float]:
    """CPU seconds, and what the samples are like."""
    tokens = masked = 0
    begin = time.process_time()
    for at in range(first, first + count, batch):
        made = split.assemble(at, batch)
        tokens += int(made.lengths.sum())
        masked += len(made.masked_labels)
    return {"seconds": time.process_time() - begin, "tokens": tokens / count, "masked": masked / count}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samples a second of both, and their ratio."""
    tokenizer = load_tokenizer("BertWordPieceLowerCase", options.vocab_file)
    data = DataConfig(
        data_path=(options.data_path,), split="1,0,0", seq_length=SEQ_LENGTH, data_cache_path=str(folder / "ours")
    )
    split = open_splits(data, seed=1234, tokenizer=tokenizer)["train"]
    dataset = split.corpora[0].dataset
    rates: dict[str, list[float]] = {"ours": [], "megatron-core": []}
    shape: dict[str, dict[str, float]] = {}
    marked = folder / "marked_text_sentence"
    with_marks(dataset, tokenizer, marked)
    with megatron_core(options.peer_python) as peer:
        where = {
            "prefix": str(marked), "vocabulary": str(Path(options.vocab_file).resolve()), "seq_length": SEQ_LENGTH,
            "cache": str(folder / "peer"),
        }  # fmt: skip
        for round_number in range(options.rounds):
            count = options.samples // options.batch * options.batch
            found = ours(split, round_number * count, count, options.batch)
            rates["ours"].append(count / found["seconds"])
            answer = peer.call("samples", first=round_number * 400, count=400, **where)
            rates["megatron-core"].append(400 / answer["seconds"])
            for name, result in (("ours", found), ("megatron-core", answer)):
                shape[name] = {key: round(result[key], 1) for key in ("tokens", "masked")}
    return {
        "seq_length": SEQ_LENGTH,
        "batch": options.batch,
        "corpus": {"tokens": dataset.num_tokens, "sentences": dataset.num_sentences},
        "samples a second": {name: summary(values) for name, values in rates.items()},
        "a sample": shape,
        "ratio": summary(rates["ours"])["median"] / summary(rates["megatron-core"])["median"],
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__},
    }


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with megatron-core==0.16.1")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--vocab-file", required=True)
    parser.add_argument("--samples", type=int, default=200_000, help="of a round of ours")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    text = json.dumps(results, indent=1)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
