"""What a run will take, and the best layout for it: memory, bubble, communication and time of a step, before it starts.

Takes the flags of pretrain_bert.py; data, learning rate and length of the run may be missing. An option of the layout
that is given is kept, the others are searched. docs/planner.md says how good the figures are.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron.arguments import flags_of, parse
from megatron.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    PretrainConfig,
    TrainingConfig,
    run_among,
)
from megatron.errors import main_guard, raise_problems
from megatron.megatron_flags import ADVICE
from megatron.planning.case import for_planning, with_word_table
from megatron.planning.communication import step_traffic
from megatron.planning.memory import GIB, memory_table
from megatron.planning.profiles import PROFILES
from megatron.planning.published import comparison, layer_comparison
from megatron.planning.search import RESERVED, Candidate, candidates, recommended
from megatron.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The machines to plan for."""

    num_gpus: int = 0
    """GPUs of the run."""
    gpu_profile: Literal["a100-40", "a100-80", "h100", "h200", "v100-32"] = "a100-80"
    """Kind of GPU and of the machines around it."""
    gpu_memory_gb: float | None = None
    """Memory of a GPU, GiB [default: the profile's]."""
    top: int = 10
    """Layouts to print."""
    published: bool = False
    """Print published runs beside the planner's figures, as in docs/planner.md, and exit."""

    def problems(self) -> list[str]:
        """Violations of the rules of these options, as messages."""
        found = [] if self.num_gpus > 0 else ["--num-gpus is required"]
        if self.gpu_memory_gb is not None and not 0 < self.gpu_memory_gb < math.inf:
            found.append(f"--gpu-memory-gb must be positive, not {self.gpu_memory_gb}")
        return found if self.top > 0 else [*found, f"--top must be at least 1, not {self.top}"]


@dataclass(frozen=True, kw_only=True)
class PlanRunConfig:
    """A run to plan: the options of pretrain_bert.py, and the machines."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def check(config: PlanRunConfig) -> None:
    """Raise `UserError` with all that is missing for any plan."""
    problems, run = config.plan.problems(), run_among(config)
    if run.training.global_batch_size <= 0:
        problems.append("--global-batch-size is required: a plan compares layouts of the same step")
    # What is wrong in every layout; the layouts themselves, and what they need, are searched.
    anyhow = dataclasses.replace(
        for_planning(run),
        parallel=ParallelConfig(),
        training=dataclasses.replace(for_planning(run).training, micro_batch_size=1),
    )
    problems += anyhow.problems(1)
    raise_problems(problems)


def layout_name(candidate: Candidate) -> str:
    """A layout in short: sizes, then what saves memory."""
    case, parallel = candidate.case, candidate.case.parallel
    chunks = parallel.chunks(case.model)
    words = [f"tp{case.layout.tensor}" + ("+sp" if case.sequence_parallel else ""), f"pp{case.layout.pipeline}"]
    words[-1] += f"x{chunks}" if chunks > 1 else ""
    words[-1] += " zero-bubble" if parallel.pipeline_schedule == "zero-bubble" else ""
    words.append(f"dp{case.layout.data}" + ("+zero" if parallel.use_distributed_optimizer else ""))
    words += [parallel.recompute_granularity] if parallel.recompute_granularity else []
    return " ".join([*words, f"mb{case.samples}"])


def table(found: Sequence[Candidate]) -> list[str]:
    """Layouts as text: GiB of the stage that needs most; GB that rank 0 communicates."""
    heads = "weights grads optimizer activ. total fits bubble comm.GB s/step tokens/s MFU".split()
    widths = (8, 7, 10, 7, 7, 5, 7, 8, 8, 11, 6)
    names = [layout_name(candidate) for candidate in found]
    longest = max(map(len, ("layout", *names)))
    lines = ["layout".ljust(longest) + "".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))]
    for name, candidate in zip(names, found, strict=True):
        memory, guess = candidate.memory, candidate.estimate
        states = (memory.states.weights, memory.states.gradients, memory.states.optimizer)
        cells = [f"{size / GIB:.2f}" for size in (*states, memory.activations + memory.workspace, memory.total)]
        cells += ["yes" if candidate.fits else "no", f"{guess.bubble:.1%}"]
        cells += [f"{sum(step_traffic(candidate.case, 0).bytes.values()) / 1e9:.2f}", f"{guess.seconds:.3f}"]
        cells += [f"{guess.tokens_per_second:,.0f}", f"{guess.mfu:.1%}"]
        lines.append(name.ljust(longest) + "".join(c.rjust(width) for c, width in zip(cells, widths, strict=True)))
    return lines


def launch_command(candidate: Candidate, gpus: int, gpus_per_node: int) -> str:
    """The command that starts the run in this layout."""
    nodes = -(-gpus // gpus_per_node)
    start = ["torchrun", "--nproc-per-node", str(min(gpus, gpus_per_node))]
    if nodes > 1:
        start += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "FIRST_NODE:29500"]
    return shlex.join([*start, "pretrain_bert.py", *flags_of(candidate.config)])


def stand_in_lines(given: PretrainConfig, used: PretrainConfig) -> list[str]:
    """Which options of the command the user has not given."""
    chosen = {
        "--data-path": given.data.data_path != used.data.data_path,
        "--vocab-file": given.data.vocab_file != used.data.vocab_file,
        "--tokenizer-model": given.data.tokenizer_model != used.data.tokenizer_model,
        "--lr": given.optimizer.lr != used.optimizer.lr,
        "--train-iters": given.training.train_iters != used.training.train_iters,
    }
    names = [flag for flag, is_chosen in chosen.items() if is_chosen]
    return [f"Put in your own: {', '.join(names)}."] if names else []


def plan(config: PlanRunConfig) -> list[str]:
    """The plan as text. Raises `UserError` for a run that cannot be in any layout."""
    check(config)
    run, machines, profile = run_among(config), config.plan, PROFILES[config.plan.gpu_profile]
    memory = machines.gpu_memory_gb or profile.memory
    found = candidates(for_planning(with_word_table(run)), machines.num_gpus, profile, memory)
    best = recommended(found)
    lines = [
        f"{machines.num_gpus} {machines.gpu_profile} GPUs of {memory:g} GiB, {RESERVED:.0%} of it left to libraries: "
        + (f"{len(found)} layouts fit." if best else "no layout fits; those that need least:"),
        "GiB of the fullest rank: weights, gradients and optimizer exact, activations estimated. Times are estimated.",
        "",
        *table(found[: machines.top]),
        "",
    ]
    if best is None:
        return [
            *lines,
            "Take more GPUs, more memory, a smaller --micro-batch-size, or give fewer options of the layout.",
        ]
    return [
        *lines,
        f"recommended: {layout_name(best)}, about {best.estimate.seconds:.3f} s a step",
        *(f"  {line}" for line in memory_table(best.memory)),
        "",
        launch_command(best, machines.num_gpus, profile.gpus_per_node),
        *stand_in_lines(run, best.config),
    ]


def main() -> None:
    config = parse(
        PlanRunConfig,
        prog="plan_run.py",
        description="Plan a pre-training run: layouts with their memory, communication and time.",
        presets=PRESETS,
        advice=ADVICE,
    )
    lines = [*comparison(), "", *layer_comparison()] if config.plan.published else plan(config)
    print("\n".join(lines))


if __name__ == "__main__":
    main_guard(main)
