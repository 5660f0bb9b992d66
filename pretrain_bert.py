"""Pre-train a BERT-like encoder: `python pretrain_bert.py ...`, or `torchrun ... pretrain_bert.py ...`."""

from megatron.arguments import parse
from megatron.config import PretrainConfig
from megatron.errors import main_guard
from megatron.megatron_flags import ADVICE
from megatron.presets import PRESETS
from megatron.training.dry_run import dry_run
from megatron.training.launch import pretrain


def main() -> None:
    """Parse, check, train."""
    config = parse(
        PretrainConfig,
        prog="pretrain_bert.py",
        description="Pre-train a BERT-like encoder with masked-language-model and sentence-order losses.",
        presets=PRESETS,
        advice=ADVICE,
    )
    if config.dry_run.dry_run:
        print("\n".join(dry_run(config)))
    else:
        pretrain(config)


if __name__ == "__main__":
    main_guard(main)
