"""Every option of pre-training, once: name, type, default, unit, help text and check.

Flags, `--config` files, the saved `config.json` and the table of flags in the docs are derived from these
dataclasses (see `megatron/arguments.py`). Names and defaults are Megatron-LM's where it has them. A zero or None
stands for "not given"; `PretrainConfig.resolved` replaces it by the value that follows from the other options.
"""

from megatron.config.data import DataConfig
from megatron.config.model import ModelConfig, model_from_dict, with_vocabulary
from megatron.config.output import CheckpointConfig, LoggingConfig
from megatron.config.parallel import ParallelConfig
from megatron.config.pretrain import DryRunConfig, PretrainConfig, run_among, to_dict
from megatron.config.training import OptimizerConfig, PrecisionConfig, TrainingConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DryRunConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "PretrainConfig",
    "TrainingConfig",
    "model_from_dict",
    "run_among",
    "to_dict",
    "with_vocabulary",
]
