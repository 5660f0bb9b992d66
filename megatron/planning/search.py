"""Every feasible layout of a run, ranked by the time of a step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.config import ParallelConfig, PretrainConfig
from megatron.errors import UserError
from megatron.planning.case import Case, case_of
from megatron.planning.estimate import Estimate, estimate
from megatron.planning.memory import GIB, StageMemory, largest_memory
from megatron.planning.profiles import Profile

RESERVED = 0.08  # share of a GPU's memory for its libraries and for what allocation in pieces wastes
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout of the run. config: resolved; memory: of the stage that needs most."""

    config: PretrainConfig
    case: Case
    memory: StageMemory
    estimate: Estimate
    fits: bool


def candidates(config: PretrainConfig, gpus: int, profile: Profile, memory_gib: float) -> list[Candidate]:
    """Layouts of a run on `gpus` GPUs of `memory_gib` GiB that fit, by time of a step; if none does, by memory.

    config: with stand-ins and word table (`megatron.planning.case`), not resolved. An option of the layout that is not
    at its default is kept; the others are chosen: sizes, schedule, ZeRO, sequence parallelism, recomputation (the least
    that fits), micro-batch. Raises `UserError` if no layout is possible, with the problems of what was given.
    """
    limit = memory_gib * GIB * (1 - RESERVED)
    tried = [
        (changed, case, largest_memory(case))
        for changed in _variants(config, gpus, profile)
        for case in (case_of(changed, gpus),)
    ]
    if not tried:
        given = config.training
        single = dataclasses.replace(given, micro_batch_size=given.micro_batch_size or 1)
        dataclasses.replace(config, training=single).resolved(world_size=gpus)  # says what is wrong with what was given
        raise UserError(
            f"no layout of {gpus} GPUs goes with --global-batch-size {config.training.global_batch_size} and the "
            "options of the layout that are given; leave out some of them, or take another batch"
        )
    fitting = [one for one in tried if one[2].total <= limit]
    least = sorted(tried, key=lambda one: one[2].total)[:20]
    found = [
        Candidate(config=changed, case=case, memory=memory, estimate=estimate(case, profile), fits=bool(fitting))
        for changed, case, memory in _least_recomputation(fitting) or least
    ]
    return sorted(found, key=lambda c: c.estimate.seconds) if fitting else found


def recommended(found: Sequence[Candidate]) -> Candidate | None:
    """Of the layouts that fit, the one within 2 % of the fastest with the fewest parts, then the least memory."""

    def simplicity(candidate: Candidate) -> tuple[int, int, int]:
        parallel, model = candidate.case.parallel, candidate.case.model
        return parallel.model_parallel_size, parallel.chunks(model), candidate.memory.total

    near = [c for c in found if c.fits and c.estimate.seconds <= 1.02 * found[0].estimate.seconds]
    return min(near, key=simplicity, default=None)


_Tried = tuple[PretrainConfig, Case, StageMemory]


def _least_recomputation(fitting: Sequence[_Tried]) -> list[_Tried]:
    """Of cases that differ in recomputation alone, the one with the least: they come in that order."""
    first: dict[object, _Tried] = {}
    for one in fitting:
        case = one[1]
        alike = dataclasses.replace(case.parallel, recompute_granularity=None), case.samples
        first.setdefault(alike, one)
    return list(first.values())


def _variants(config: PretrainConfig, gpus: int, profile: Profile) -> Iterator[PretrainConfig]:
    """Resolved configurations with every possible layout, all rules kept."""
    given = config.training.micro_batch_size
    for parallel in _layouts(config, gpus, profile):
        if parallel.problems(config.model, gpus):
            continue
        data = gpus // parallel.model_parallel_size
        for micro in (given,) if given else _MICRO_BATCHES:
            if config.training.global_batch_size % (micro * data) == 0:
                training = dataclasses.replace(config.training, micro_batch_size=micro)
                changed = dataclasses.replace(config, parallel=parallel, training=training)
                if not changed.problems(gpus):
                    yield changed.resolved(world_size=gpus)


def _layouts(config: PretrainConfig, gpus: int, profile: Profile) -> Iterator[ParallelConfig]:
    """Layouts that may or may not be possible: options that are not at their default as given, others varied."""
    given, default, layers = config.parallel, ParallelConfig(), config.model.num_layers
    dropout = config.model.attention_dropout > 0.0

    def choices(name: str, values: Sequence[Any]) -> Sequence[Any]:
        own = getattr(given, name)
        return values if own == getattr(default, name) else [own]

    in_a_machine = [n for n in range(1, min(gpus, profile.gpus_per_node) + 1) if gpus % n == 0]
    for tensor in choices("tensor_model_parallel_size", in_a_machine):
        stages = [n for n in range(1, min(gpus, layers) + 1) if gpus % (n * tensor) == 0]
        for pipeline in choices("pipeline_model_parallel_size", stages):
            varied = [
                choices("sequence_parallel", [tensor > 1 and config.data.seq_length % tensor == 0]),
                choices("use_distributed_optimizer", [False, True] if gpus > tensor * pipeline else [False]),
                _schedules(given, pipeline, layers),
                # The least first; without dropout "selective" saves no memory.
                choices("recompute_granularity", [None, "selective", "full"] if dropout else [None, "full"]),
            ]
            for sequence, sharded, schedule, granularity in itertools.product(*varied):
                yield dataclasses.replace(
                    given,
                    tensor_model_parallel_size=tensor,
                    pipeline_model_parallel_size=pipeline,
                    sequence_parallel=sequence,
                    use_distributed_optimizer=sharded,
                    recompute_granularity=granularity,
                    **schedule,
                )


def _schedules(given: ParallelConfig, stages: int, layers: int) -> list[dict[str, Any]]:
    """1F1B, zero-bubble, and interleaved with few and with many chunks; or what was given."""
    options = given.pipeline_schedule, given.num_layers_per_virtual_pipeline_stage, given.pipeline_split
    if stages == 1 or any(option is not None for option in options):
        return [{}]
    sizes = [n for n in range(1, layers // stages) if layers % (stages * n) == 0]
    few_and_many = sorted({sizes[0], sizes[-1]}) if sizes else []
    return [
        {},
        {"pipeline_schedule": "zero-bubble"},
        *[{"num_layers_per_virtual_pipeline_stage": size} for size in few_and_many],
    ]
