"""What differs between a run and the checkpoint that it continues: other data or batches would make it another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.config import PretrainConfig, to_dict
from megatron.errors import UserError

_MODEL_AND_DATA = ("model", "data")
_BATCHES = ("global_batch_size", "rampup_batch_size", "seed")
_FREE = frozenset(
    {"data_path", "train_data_path", "valid_data_path", "test_data_path", "data_cache_path", "vocab_file",
     "tokenizer_model", "num_workers"}
)  # fmt: skip
"""Options of these sections that do not change the run: paths (what they hold is compared), and speed."""
_IGNORED = ("parallel", "checkpoint", "logging", "dry_run")


def check_changes(
    saved: Mapping[str, Any], saved_data: Mapping[str, str] | None, config: PretrainConfig, data: Mapping[str, str]
) -> list[str]:
    """What changed since a checkpoint, in lines.

    saved: the configuration in the checkpoint; saved_data, data: names and hashes of what the corpora hold, None in
    older checkpoints. Raises `UserError` if model, data or batches changed, unless --accept-changes was given.
    """
    found = list(_options(saved, to_dict(config)))
    if saved_data is not None:
        names = dict.fromkeys((*saved_data, *data))
        found += [
            (True, f"{name}: {saved_data.get(name, 'none')} before, {data.get(name, 'none')} now")
            for name in names
            if saved_data.get(name) != data.get(name)
        ]
    refused = [text for breaks, text in found if breaks]
    if refused and not config.checkpoint.accept_changes:
        raise UserError(
            f"this is not the run of the checkpoint: {'; '.join(refused)}; continue with the options and data it "
            "had, take only its weights (--load FOLDER --finetune and another --save), or give --accept-changes"
        )
    return [f"changed since the checkpoint: {text}" for _, text in found]


def _options(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """(whether it makes another run, what changed) for the options that both know."""
    for section, values in now.items():
        before = saved.get(section)
        if section in _IGNORED or not isinstance(before, dict):
            continue
        for name, value in values.items():
            if name in before and name not in _FREE and _plain(before[name]) != _plain(value):
                breaks = section in _MODEL_AND_DATA or (section == "training" and name in _BATCHES)
                yield breaks, f"--{name.replace('_', '-')}: {before[name]} before, {value} now"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
