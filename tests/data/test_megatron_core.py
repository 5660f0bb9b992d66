"""Files of ours read by megatron-core, and its files here.

Runs where MEGATRON_CORE_PYTHON names an interpreter that has megatron-core (0.16.1 was tried); its package has the name
of ours, so it cannot be in the same environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset

from .made_up import random_documents, write_corpus

PEER = r"""
import json, sys
import numpy as np, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
call, prefix, documents = json.load(sys.stdin)
if call == "read":
    dataset = IndexedDataset(prefix)
    sentences = [dataset[i].tolist() for i in range(len(dataset))]
    json.dump({"sentences": sentences, "documents": dataset.document_indices.tolist()}, sys.stdout)
else:
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=getattr(np, call))
    for document in documents:
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(prefix + ".idx")
"""


@pytest.fixture
def megatron_core(tmp_path: Path):
    """A call of megatron-core: what to do, the prefix, documents."""
    python = os.environ.get("MEGATRON_CORE_PYTHON")
    if not python:
        pytest.skip("MEGATRON_CORE_PYTHON names no interpreter with megatron-core")

    def call(*request: Any) -> Any:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [python, "-c", PEER], input=json.dumps(request), capture_output=True, text=True, env=environment,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout) if result.stdout else None

    return call


def test_ours_is_read_by_megatron_core(tmp_path: Path, megatron_core) -> None:
    dataset = write_corpus(tmp_path / "ours", random_documents(np.random.default_rng(0), 50))
    theirs = megatron_core("read", str(tmp_path / "ours"), None)
    assert theirs["documents"] == dataset.document_index.tolist()
    assert theirs["sentences"] == [dataset.sentence(number).tolist() for number in range(dataset.num_sentences)]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_theirs_is_read_here(tmp_path: Path, megatron_core, dtype: str) -> None:
    rng = np.random.default_rng(1)
    documents = [[rng.integers(0, 60_000, size).tolist() for size in sizes] for sizes in random_documents(rng, 50)]
    megatron_core(dtype, str(tmp_path / "theirs"), documents)
    dataset = IndexedDataset(str(tmp_path / "theirs"))
    assert dataset.dtype == np.dtype(dtype)
    found = [
        [dataset.sentence(number).tolist() for number in range(*dataset.document_index[document : document + 2])]
        for document in range(dataset.num_documents)
    ]
    assert found == documents
