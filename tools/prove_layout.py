"""Prove a layout on your own machine, data and model: `torchrun --nproc-per-node N tools/prove_layout.py FLAGS`.

FLAGS are those of pretrain_bert.py. The same steps are trained in the layout and in one process; losses, gradients and
weights are compared. Exit code 0 if they are equal, 1 if not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from megatron.arguments import parse
from megatron.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    PretrainConfig,
    TrainingConfig,
    run_among,
    with_vocabulary,
)
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import JobError, UserError, main_guard
from megatron.megatron_flags import ADVICE
from megatron.mpu.context import ParallelContext, launched_processes
from megatron.presets import PRESETS
from megatron.training.agreement import check_start
from megatron.training.launch import open_data
from megatron.training.proof import Comparison, ProofConfig, prove, scaled_down, table


@dataclass(frozen=True, kw_only=True)
class ProveLayoutConfig:
    """Proof of a layout: the flags of pretrain_bert.py that matter for it."""

    proof: ProofConfig = field(default_factory=ProofConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(train_iters=1000))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


def main() -> None:
    """Parse, train twice, compare."""
    given = parse(
        ProveLayoutConfig,
        prog="tools/prove_layout.py",
        description="Train the same steps in a layout and in one process, and compare.",
        presets=PRESETS,
        advice=ADVICE,
    )
    if launched_processes() == 1:
        raise UserError("start the processes of the layout: torchrun --nproc-per-node N tools/prove_layout.py ...")
    config = run_among(given).resolved(world_size=launched_processes())
    with ParallelContext.from_environment(config.parallel, agree=lambda job: check_start(job, config)) as context:
        found = run_proof(config, given.proof, context)
    if not all(comparison.equal for comparison in found):
        raise JobError("the layout does not give the numbers of one process")
    if context.is_main:
        print("verdict: the layout gives the numbers of one process")


def run_proof(config: PretrainConfig, proof: ProofConfig, context: ParallelContext) -> list[Comparison]:
    """Open the data, train twice, and print the comparison."""
    with context.together():
        tokenizer = load_tokenizer(config.data.tokenizer_type, config.data.vocab_file, config.data.tokenizer_model)
        model = with_vocabulary(config.model, tokenizer.vocab_size)
        model = model if proof.full_size else scaled_down(model)
        config = dataclasses.replace(config, model=model)
        splits = open_data(config, tokenizer)
    found = prove(config, splits["train"], proof, context)
    if context.is_main:
        print(
            f"{model.num_layers} layers of width {model.hidden_size}, {proof.steps} steps of "
            f"{config.training.global_batch_size} samples in fp32; {context.layout.world_size} processes = tensor "
            f"{context.layout.tensor} x pipeline {context.layout.pipeline} x data {context.layout.data} against one"
        )
        print("\n".join(table(found)), flush=True)
    return found


if __name__ == "__main__":
    main_guard(main)
