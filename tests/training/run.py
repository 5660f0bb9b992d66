"""A run of pre-training inside this process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from megatron.arguments import parse
from megatron.config import PretrainConfig
from megatron.megatron_flags import ADVICE
from megatron.presets import PRESETS
from megatron.training.launch import pretrain
from tests.training.corpus import arguments


def config_of(folder: Path, **flags: Any) -> PretrainConfig:
    """The configuration of a small run on the corpus of `folder`."""
    argv = arguments(folder, **flags)
    return parse(PretrainConfig, argv, prog="pretrain_bert.py", description="", presets=PRESETS, advice=ADVICE)


def train(folder: Path, **flags: Any) -> None:
    """`pretrain_bert.py` with flags; signal handlers are put back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        pretrain(config_of(folder, **flags))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
