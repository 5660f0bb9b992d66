"""The sample index of 50 million sentences: ours against megatron-core's compiled helper, one core, CPU time.

    taskset -c 0 python benchmarks/sample_index.py --peer-python OTHER/bin/python    # which has megatron-core==0.16.1
    python benchmarks/sample_index.py --billion                # the memory of an index of one billion samples

Interleaved rounds over the same made-up lengths. "file" is with the file that later runs find: for us written block
by block with checksum and flush, for the peer by numpy.save.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from peer import megatron_core, summary

from megatron.data.indexed import HEADER as INDEX_HEADER
from megatron.data.indexed import INDEX_MAGIC, IndexedDataset
from megatron.data.sample_cache import ROW, write_index
from megatron.data.samples import SampleRule, _blocks, open_sample_index, split_ranges

RESULTS = Path(__file__).resolve().parent / "results" / "sample_index.json"
A_DOCUMENT = 12  # sentences


def corpus(sentences: int, mean_factor: float = 1.0) -> Any:
    """Lengths of made-up sentences, gamma distributed between 3 and 200 tokens, as what a sample index sees."""
    sizes = np.empty(sentences, np.int32)
    rng = np.random.default_rng(1)
    for first in range(0, sentences, 1 << 22):
        part = sizes[first : first + (1 << 22)]
        part[:] = np.clip(rng.gamma(2.2, 14 * mean_factor, len(part)), 3, 200 * mean_factor)
    starts = np.append(np.arange(0, sentences, A_DOCUMENT, dtype=np.int64), sentences)
    return SimpleNamespace(
        prefix="made-up", sizes=sizes, document_index=starts, num_documents=len(starts) - 1,
        num_sentences=sentences, num_tokens=int(sizes.sum(dtype=np.int64)),
    )  # fmt: skip


def measure(python: str, sentences: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of results: each sequence length, in memory and with the file."""
    made_up = corpus(sentences)
    np.save(folder / "sizes.npy", made_up.sizes)
    np.save(folder / "documents.npy", made_up.document_index)
    whole = (0, made_up.num_documents)
    rows = []
    with megatron_core(python) as peer:
        for seq_length in (128, 512):
            rule = SampleRule(seq_length=seq_length, binary_head=True, short_seq_prob=0.1, seed=1234)
            for to_file in (False, True):
                times: dict[str, list[float]] = {"ours": [], "ours, training split": [], "megatron-core": []}
                size: dict[str, float] = {}
                for _ in range(rounds):
                    for name, places in (
                        ("ours", whole),
                        ("ours, training split", split_ranges("969,30,1", made_up.num_documents, "made-up")["train"]),
                    ):
                        begin = time.process_time()
                        blocks = _blocks(made_up, "train", places, rule)
                        if to_file:
                            write_index(folder / "ours.samples", blocks, 0)
                        else:
                            kept = [rows for rows, _, _ in blocks]
                            size["ours"] = sum(rows.nbytes for rows in kept) / sum(map(len, kept))
                        times[name].append(time.process_time() - begin)
                    answer = peer.call(
                        "index", sizes=str(folder / "sizes.npy"), documents=str(folder / "documents.npy"),
                        longest=rule.longest, output=str(folder / "peer.npy") if to_file else None,
                    )  # fmt: skip
                    times["megatron-core"].append(answer["seconds"])
                    size["megatron-core"] = answer["bytes"] / answer["samples"]
                rows.append(
                    {"sentences": sentences, "seq_length": seq_length, "file": to_file}
                    | {f"{name}, seconds": summary(values) for name, values in times.items()}
                    | {f"{name}, bytes a sample": value for name, value in size.items()}
                    | {"ratio": summary(times["megatron-core"])["median"] / summary(times["ours"])["median"]}
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def billion(sentences: int, folder: Path) -> dict[str, Any]:
    """A billion samples of real files (the tokens all zero: a file without blocks), from opening to an open split."""
    made_up = corpus(sentences, 4.0)
    prefix, tokens = folder / "billion_text_sentence", made_up.num_tokens
    with open(f"{prefix}.idx", "wb") as file:
        file.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, 1, sentences, len(made_up.document_index)))
        file.write(made_up.sizes.data)
        start = 0
        for first in range(0, sentences, 1 << 22):
            sums = start + np.cumsum(made_up.sizes[first : first + (1 << 22)], dtype=np.int64)
            file.write(np.concatenate([[start], sums[:-1]]).data)
            start = int(sums[-1])
        file.write(made_up.document_index.data)
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(tokens)
    del made_up
    with ProcessPoolExecutor(1) as pool:  # a fresh process, for its memory
        result = pool.submit(open_billion, str(prefix)).result()
    result = {"sentences": sentences, "tokens": tokens} | result
    print(json.dumps(result, indent=1))
    return result


def open_billion(prefix: str) -> dict[str, Any]:
    """What building the index of a corpus and reading it back costs this process."""
    dataset = IndexedDataset(prefix)
    rule = SampleRule(seq_length=32, binary_head=True, short_seq_prob=0.1, seed=1234)
    begin, cpu = time.perf_counter(), time.process_time()
    index = open_sample_index(dataset, "train", (0, dataset.num_documents), rule, None, wait_seconds=0.0)
    built, built_cpu = time.perf_counter() - begin, time.process_time() - cpu
    begin = time.perf_counter()
    open_sample_index(dataset, "train", (0, dataset.num_documents), rule, None, wait_seconds=0.0)
    return {
        "samples": len(index.rows),
        "bytes a sample": ROW.itemsize,
        "build seconds": built,
        "build CPU seconds": built_cpu,
        "seconds from the cache": time.perf_counter() - begin,
        "resident GB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with megatron-core==0.16.1")
    parser.add_argument("--sentences", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--billion", action="store_true")
    parser.add_argument("--folder", help="for the files, 17 GB with --billion [default: the folder of temporary files]")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.peer_python:
            results["cases"] = measure(options.peer_python, options.sentences, options.rounds, Path(folder))
        if options.billion:
            results["billion"] = billion(260_000_000, Path(folder))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
