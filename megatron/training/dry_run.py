"""`--dry-run`: one rank of a run of any size on one process, in seconds: place, parts, memory, communication, plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron.config import PretrainConfig
from megatron.errors import UserError
from megatron.model import BertEncoder
from megatron.model.parts import ModelPart
from megatron.mpu.context import ParallelContext, launched_processes
from megatron.mpu.pipeline.drawing import draw_text, text_width
from megatron.optimizer.adamw import Optimizer
from megatron.planning.case import Case, case_of, for_planning, with_word_table
from megatron.planning.communication import step_traffic
from megatron.planning.memory import gib, memory_table, stage_memory
from megatron.planning.states import StateBytes, meta_chunks
from megatron.training.model import new_optimizer

_WIDEST, _MOST_STAGES = 150, 16  # of a drawn plan, characters and lines


def dry_run(config: PretrainConfig) -> list[str]:
    """What one rank of a run would be, as text.

    The rank's model and optimizer are really built, by the code of training over PyTorch's fake process group, of
    tensors without numbers. Data and the options that change nothing here may be missing. Raises `UserError` naming
    every violated rule at once.
    """
    world_size, rank = config.dry_run.world_size or launched_processes(), config.dry_run.rank
    for_planning(config).resolved(world_size=world_size)  # all rules before a file is read
    if rank >= world_size:
        raise UserError(f"--rank {rank} must be from 0 to {world_size - 1}; or give --world-size")
    planned = for_planning(with_word_table(config)).resolved(world_size=world_size)
    case = case_of(planned, world_size)
    context = ParallelContext.fake(case.layout, rank, sequence_parallel=case.sequence_parallel)
    try:
        chunks = meta_chunks(case.model, case.parts(context.pipeline.rank), context)
        optimizer = new_optimizer(chunks, planned.optimizer, planned.precision, planned.parallel, context)
        return [
            *_layout_lines(planned, case),
            *_rank_lines(case, context, chunks),
            *_memory_lines(case, context, optimizer),
            *_traffic_lines(case, rank),
            *_plan_lines(case, context.pipeline.rank),
        ]
    finally:
        context.close()


def _layout_lines(config: PretrainConfig, case: Case) -> Iterator[str]:
    layout, parallel = case.layout, case.parallel
    extras = [", sequence parallel"] if case.sequence_parallel else []
    extras += [", distributed optimizer"] if parallel.use_distributed_optimizer else []
    extras += [f", {parallel.recompute_granularity} recomputation"] if parallel.recompute_granularity else []
    yield (
        f"layout: {layout.world_size} processes = tensor {layout.tensor} x pipeline {layout.pipeline} x "
        f"data {layout.data}{''.join(extras)}"
    )
    yield (
        f"batch: {config.training.global_batch_size} samples of {case.sequence} tokens = {case.samples} samples x "
        f"{case.micro_batches} micro-batches x {layout.data} data-parallel, {case.dtype}"
    )


def _rank_lines(case: Case, context: ParallelContext, chunks: Sequence[BertEncoder]) -> Iterator[str]:
    pipeline, data, tensor = case.layout.coordinates(context.rank)
    yield f"rank {context.rank}: tensor {tensor}, data {data}, pipeline stage {pipeline}"
    for group in (context.tensor, context.data, context.pipeline, context.embedding):
        if group.size > 1:
            yield f"  {group.name} group: {_ranks(group.ranks)}"
    for number, part in enumerate(case.parts(pipeline)):
        yield f"  chunk {number}: {_part(part, case.model.num_layers)}"
    local = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    yield f"  parameters: {local:,} on this rank, padding of the vocabulary included"


def _ranks(ranks: tuple[int, ...]) -> str:
    if len(ranks) <= 8:
        return ", ".join(map(str, ranks))
    return f"{', '.join(map(str, ranks[:3]))}, ... {ranks[-1]} ({len(ranks)} ranks)"


def _part(part: ModelPart, layers: int) -> str:
    names = ["embeddings"] if part.has_embeddings else []
    names.append(f"layers {part.first} to {part.stop - 1} of {layers}")
    return ", ".join([*names, "heads"] if part.has_heads else names)


def _memory_lines(case: Case, context: ParallelContext, optimizer: Optimizer) -> Iterator[str]:
    memory = stage_memory(case, context.pipeline.rank)
    real = _built_bytes(case, optimizer)
    if real != memory.states:
        raise AssertionError(f"the planner's states {memory.states} are not those that were built, {real}")
    yield "memory of this rank:"
    yield from (f"  {line}" for line in memory_table(memory))


def _built_bytes(case: Case, optimizer: Optimizer) -> StateBytes:
    """What the optimizer's buffers would take."""
    buckets = optimizer.flat.buckets
    return StateBytes(
        weights=sum(bucket.weights.nbytes for bucket in buckets),
        gradients=sum(bucket.gradients.nbytes for bucket in buckets),
        masters=0 if case.dtype == "fp32" else sum(masters.nbytes for masters in optimizer.masters),
        moments=sum(moment.nbytes for moment in (*optimizer.exp_avg, *optimizer.exp_avg_sq)),
    )


def _traffic_lines(case: Case, rank: int) -> Iterator[str]:
    traffic = step_traffic(case, rank)
    yield "communication of this rank in a step" + ("" if traffic.calls else ": none")
    for (group, operation), calls in sorted(traffic.calls.items()):
        yield f"  {group + ' group':<16} {operation:<14} {calls:>9,} calls {gib(traffic.bytes[group, operation]):>12}"


def _plan_lines(case: Case, stage: int) -> Iterator[str]:
    stages, chunks = case.layout.pipeline, case.parallel.chunks(case.model)
    if stages == 1 and chunks == 1:
        return
    timeline = case.timeline
    unit = "micro-batches" if chunks == 1 else f"micro-batches through one of {chunks} chunks"
    yield (
        f"pipeline: {case.parallel.schedule(case.model)}, bubble {case.bubble:.1%} of the time of work with stages of "
        f"equal cost; this stage holds at most {timeline.peak_held[stage]} {unit}"
    )
    width = text_width(timeline, chunks)
    if width <= _WIDEST and stages <= _MOST_STAGES and case.steady == case.micro_batches:
        yield from (f"  {line}" for line in draw_text(timeline, chunks=chunks, width=width))
    else:
        yield "  (the plan is too long to draw here: tools/show_schedule.py draws it)"
