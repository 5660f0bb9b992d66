"""Before step 0 all ranks compare what must be the same on all of them: code, configuration, environment, data.

A rank with another version of a file or another vocabulary would train another model, or hang, without a word. What
may differ between nodes is left out: host names, paths (what they hold is compared), log files, devices, the number of
threads and network interfaces. OMP_NUM_THREADS and such change speed, and the last bits of sums as another layout does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import megatron
from megatron.config import to_dict
from megatron.data.batches import Split
from megatron.data.indexed import IndexedDataset
from megatron.data.samples import corpus_key
from megatron.data.tokenizer import Tokenizer
from megatron.errors import UserError
from megatron.mpu.job import Job
from megatron.mpu.pulse import plural

Facts = dict[str, str]
"""What a rank has, by the name that a message gives it."""

MOST_LINES = 8
ENDS = 1 << 20
"""Bytes of each end of a corpus that are hashed: reading it all would take hours where it is large."""
MAY_DIFFER = frozenset(
    {
        "data_path", "train_data_path", "valid_data_path", "test_data_path", "data_cache_path", "vocab_file",
        "tokenizer_model", "data_dir", "train_file", "dev_file", "test_file", "metrics_file",
        "tensorboard_dir", "wandb_project", "wandb_exp_name",
    }
)  # fmt: skip
"""Options with paths of inputs, and those that only the main rank uses."""
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "sentencepiece")
VARIABLES = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NCCL_ALGO",
    "NCCL_PROTO", "CUDA_LAUNCH_BLOCKING",
)  # fmt: skip
"""Variables that change numbers, or what ranks say to each other."""


def code_facts(command: str = sys.argv[0]) -> Facts:
    """Hashes of the package's files, compiled ones included, and of the command."""
    root = Path(megatron.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so") and path.is_file())
    facts = {f"code in megatron/{path.relative_to(root)}": _hash(path.read_bytes()) for path in files}
    if os.path.isfile(command):
        facts[f"code in {os.path.basename(command)}"] = _hash(Path(command).read_bytes())
    return facts


def environment_facts(device: str) -> Facts:
    """Versions and variables that decide what is computed. device: "cpu" or "cuda"."""
    facts = {"Python": platform.python_version(), "processor type": platform.machine(), "device type": device}
    facts |= {package: importlib.metadata.version(package) for package in PACKAGES}
    if device == "cuda":
        facts |= {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    return facts | {f"variable {name}": os.environ[name] for name in VARIABLES if name in os.environ}


def configuration_facts(config: Any) -> Facts:
    """The resolved options (a dataclass of dataclasses), without those in `MAY_DIFFER`."""
    return {
        f"--{name.replace('_', '-')}": json.dumps(value)
        for section in to_dict(config).values()
        for name, value in section.items()
        if name not in MAY_DIFFER
    }


def data_facts(tokenizer: Tokenizer, splits: Mapping[str, Split]) -> Facts:
    """Vocabulary, corpora and sample indices, by content."""
    facts = {"vocabulary": f"{tokenizer.vocab_size} tokens, {tokenizer.vocabulary_hash[:12]}"}
    for name, split in splits.items():
        facts[f"blend of {name}"] = " ".join(f"{weight:.6g}" for weight in split.weights)
        for number, corpus in enumerate(split.corpora, 1):
            index = corpus.index
            facts[f"corpus {number} of {name}"] = _corpus(corpus.dataset)
            facts[f"sample index of {name}, corpus {number}"] = (
                f"{len(index.rows)} samples, {_hash(index.rows[:ENDS].tobytes() + index.rows[-ENDS:].tobytes())}"
            )
    return facts


def check_start(job: Job, config: Any) -> None:
    """Compare code, environment and configuration, before processes make groups that depend on them.

    Raises the same `UserError` on all ranks if they differ.
    """
    check_installation(job, gloo=config.parallel.distributed_backend == "gloo")
    check_agreement(job, "configuration", configuration_facts(config))


def check_installation(job: Job, *, gloo: bool = False) -> None:
    """Compare code and environment; the same `UserError` on all ranks if they differ. gloo: devices are not used."""
    check_agreement(job, "code", code_facts())
    check_agreement(job, "environment", environment_facts("cuda" if torch.cuda.is_available() and not gloo else "cpu"))


def check_agreement(job: Job | None, name: str, facts: Facts) -> None:
    """Raise the same `UserError` on all ranks if the facts of any differ from those of most. Collective."""
    if job is None:
        return
    hosts = [process.host for process in job.processes]
    found = job.consult(
        name, json.dumps(facts), lambda values: "\n  ".join(differences([json.loads(v) for v in values], hosts))
    )
    if found:
        raise UserError(
            f"the ranks differ in {name}, so they would not train one model:\n  {found}\n"
            "give all nodes the same installation, options and files"
        )


def differences(facts: Sequence[Facts], hosts: Sequence[str]) -> list[str]:
    """A line for each item in which some ranks differ from most, or from rank 0 where no value has most."""
    lines = []
    for name in dict.fromkeys(name for of_rank in facts for name in of_rank):
        values = [of_rank.get(name, "none") for of_rank in facts]
        if len(set(values)) == 1:
            continue
        counts = Counter(values)
        usual = max(counts, key=lambda value: (counts[value], value == values[0]))
        for value in counts:
            if value != usual:
                ranks = [rank for rank, other in enumerate(values) if other == value]
                places = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks[:MOST_LINES]))
                have = "have" if len(ranks) > 1 else "has"
                lines.append(f"{plural(ranks)} (host {places}) {have} another {name}: {value} instead of {usual}")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES} more differences"]
    return lines


def _corpus(dataset: IndexedDataset) -> str:
    """A corpus in a line: its size, and a hash of its structure and of both ends of its tokens and word boundaries."""
    content = [corpus_key(dataset).to_bytes(8, "little")]
    for array in (dataset.tokens, dataset.words):
        if array is not None:
            content += [len(array).to_bytes(8, "little"), array[:ENDS].tobytes(), array[-ENDS:].tobytes()]
    return f"{dataset.num_tokens} tokens, {_hash(*content)}"


def _hash(*content: bytes) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:12]
