"""The peer's side of a benchmark: work by megatron-core, in an interpreter that has it.

Its package is called `megatron` too, so it cannot be in the same process as ours. A request is a line of JSON on
standard input, {"call": NAME, ...}; the answer is a line of JSON with the CPU seconds it took.
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np


def index(sizes: str, documents: str, longest: int, output: str | None) -> dict[str, Any]:
    """One epoch by `helpers_cpp.build_mapping`; output: the file to save it to, as its datasets do."""
    from megatron.core.datasets import helpers_cpp

    lengths, starts = np.load(sizes), np.load(documents)
    begin = time.process_time()
    mapping = helpers_cpp.build_mapping(starts, lengths, 1, 2**31 - 1, longest, 0.1, 1234, False, 2)
    if output is not None:
        np.save(output, mapping, allow_pickle=True)
    return {"seconds": time.process_time() - begin, "samples": len(mapping), "bytes": mapping.nbytes}


@lru_cache(maxsize=1)
def _dataset(prefix: str, vocabulary: str, seq_length: int, cache: str) -> Any:
    import torch.distributed

    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
    from megatron.core.datasets.utils import Split

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with open(vocabulary, encoding="utf-8") as file:
        tokens = [line.rstrip("\n") for line in file]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = SimpleNamespace(
        cls=ids["[CLS]"], sep=ids["[SEP]"], mask=ids["[MASK]"], pad=ids["[PAD]"], eod=ids["[SEP]"],
        inv_vocab=dict(enumerate(tokens)), vocab_size=len(tokens), unique_identifiers={"vocabulary": vocabulary},
    )  # fmt: skip
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=1234, sequence_length=seq_length, blend=([prefix], None), split="1,0,0", path_to_cache=cache,
        tokenizer=tokenizer, masking_probability=0.15, short_sequence_probability=0.1, masking_max_ngram=3,
        masking_do_full_word=True, masking_do_permutation=False, masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False, classification_head=True, mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    low = BERTMaskedWordPieceDataset.build_low_level_dataset(prefix, config)
    documents = np.arange(BERTMaskedWordPieceDataset.numel_low_level_dataset(low), dtype=np.int32)
    return BERTMaskedWordPieceDataset(low, prefix, documents, 100_000, Split.train, config)


def samples(first: int, count: int, **where: Any) -> dict[str, Any]:
    """`count` samples of its dataset over a corpus with ## marks."""
    dataset = _dataset(**where)
    begin = time.process_time()
    made = [dataset[i] for i in range(first, first + count)]
    seconds = time.process_time() - begin
    return {
        "seconds": seconds,
        "tokens": float(np.mean([sample["padding_mask"].sum() for sample in made])),
        "masked": float(np.mean([sample["loss_mask"].sum() for sample in made])),
    }


def main() -> None:
    """Answer requests until standard input ends; whatever libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"index": index, "samples": samples}[request.pop("call")](**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
