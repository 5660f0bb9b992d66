"""What a rank communicates in a step of training: calls and bytes of its own tensors, by group and operation.

The same figures as `Group.traffic` counts: of an all-reduce, send or receive the tensor; of a reduce-scatter the whole
source; of an all-gather this rank's part. Tests hold the formulas against counted steps; docs/planner.md writes them
down. On the wire, a ring moves 2 (n - 1) / n of an all-reduce and (n - 1) / n of the whole of the others.
"""

from __future__ import annotations

from megatron.model.parts import ModelPart, Recompute
from megatron.mpu.group import Traffic
from megatron.planning.case import Case
from megatron.planning.states import rank_buckets


def step_traffic(case: Case, rank: int, masked: int | None = None) -> Traffic:
    """One step of a rank: forward, backward and update.

    masked: positions of the rank's whole share of the step at which the head is computed, where they are counted and
    not the mean.
    """
    stage = case.layout.coordinates(rank)[0]
    masked = case.masked * case.micro_batches if masked is None else masked
    traffic = Traffic()
    for chunk, part in enumerate(case.parts(stage)):
        number = chunk * case.layout.pipeline + stage  # in the whole model
        _within_layers(case, part, traffic, masked)
        _between_parts(case, number, traffic)
    _gradients(case, rank, traffic)
    _sums(case, traffic)
    return traffic


def _add(traffic: Traffic, group: str, operation: str, calls: int, size: int) -> None:
    """`calls` calls of `size` bytes in all."""
    if calls:
        key = group, operation
        traffic.calls[key] = traffic.calls.get(key, 0) + calls
        traffic.bytes[key] = traffic.bytes.get(key, 0) + size


def _recomputed(case: Case, layers: int) -> tuple[int, int]:
    """Layers of a part that are computed twice, and how many last sums of a stretch of them are not.

    Recomputation ends with the last tensor that the backward needs. In a pre-LayerNorm layer without dropout nothing
    after the MLP's second product is needed.
    """
    recompute = Recompute.of(case.parallel)
    stretches = [len(stretch) for stretch, again in recompute.stretches([""] * layers) if again]
    ends_early = case.model.architecture == "megatron-bert" and case.model.hidden_dropout == 0.0
    return sum(stretches), len(stretches) if ends_early else 0


def _last_is_recomputed(case: Case, layers: int) -> bool:
    """Whether the last layer of a part is among those computed twice."""
    *_, (_, again) = [pair for pair in Recompute.of(case.parallel).stretches([""] * layers) if pair[0]]
    return again


def _within_layers(case: Case, part: ModelPart, traffic: Traffic, masked: int) -> None:
    """Tensor parallelism: sums (or scattered sums and gathers) around the products of a part, in all micro-batches."""
    if case.tensor == 1:
        return
    layers = part.stop - part.first
    twice, spared = _recomputed(case, layers)
    whole = case.element * case.tokens * case.model.hidden_size
    if case.sequence_parallel:
        gathers = 6 * layers + 2 * twice + part.has_embeddings + part.has_heads
        scatters = 4 * layers + 2 * twice - spared + part.has_embeddings
        calls = case.micro_batches * gathers
        _add(traffic, "tensor", "all-gather", calls, calls * (whole // case.tensor))
        calls = case.micro_batches * scatters
        _add(traffic, "tensor", "reduce-scatter", calls, calls * whole)
    else:
        calls = case.micro_batches * (4 * layers + 2 * twice - spared + part.has_embeddings)
        size = calls * whole
        if part.has_heads:  # behind the last attention only what the heads read: both forwards, and one backward
            wanted = case.element * case.model.hidden_size * (case.samples * case.micro_batches + masked)
            few = 3 + (2 - bool(spared) if _last_is_recomputed(case, layers) else 0)
            size -= few * (case.micro_batches * whole - wanted)
        _add(traffic, "tensor", "all-reduce", calls, size)
    if part.has_heads:  # the logits' maximum; sum of exponentials and target, fp32; the gradient of the head's input
        of_head = 12 + case.element * case.model.hidden_size
        _add(traffic, "tensor", "all-reduce", 3 * case.micro_batches, masked * of_head)


def _between_parts(case: Case, number: int, traffic: Traffic) -> None:
    """The pipeline: hidden states and their gradients; each tensor-parallel rank sends its share of them."""
    if case.layout.pipeline == 1:
        return
    last = case.parallel.num_parts(case.model) - 1
    ends = (number > 0) + (number < last)  # of which each sends one message a micro-batch and receives one
    calls = ends * case.micro_batches
    size = calls * case.element * case.tokens * case.model.hidden_size // case.tensor
    _add(traffic, "pipeline", "send", calls, size)
    _add(traffic, "pipeline", "receive", calls, size)
    if case.tensor > 1 and not case.sequence_parallel:
        _add(traffic, "tensor", "all-gather", calls, size)


def _gradients(case: Case, rank: int, traffic: Traffic) -> None:
    """Data parallelism: the gradients of a step, fp32, and with ZeRO the weights; what several holders sum."""
    buckets = rank_buckets(case, rank)
    size = sum(bucket.size for bucket in buckets)
    if case.layout.data > 1 and case.parallel.use_distributed_optimizer:
        _add(traffic, "data", "reduce-scatter", len(buckets), 4 * size)
        own = sum(bucket.own.stop - bucket.own.start for bucket in buckets)
        _add(traffic, "data", "all-gather", len(buckets), case.element * own)
    elif case.layout.data > 1:
        _add(traffic, "data", "all-reduce", len(buckets), 4 * size)
    for bucket in buckets:
        if bucket.tied and case.layout.pipeline > 1:
            _add(traffic, "embedding", "all-reduce", 1, 4 * (bucket.own.stop - bucket.own.start))
    partial = sum(run.stop - run.start for bucket in buckets for run in bucket.runs if run.partial)
    if partial and case.tensor > 1:
        _add(traffic, "tensor", "all-reduce", 1, 4 * partial)


def _sums(case: Case, traffic: Traffic) -> None:
    """Counts (4 numbers), losses and hits (4) and the norm (1) of a step, fp64."""
    if case.layout.data > 1:
        norm = int(case.parallel.use_distributed_optimizer)
        _add(traffic, "data", "all-reduce", 2 + norm, 32 + 32 + 8 * norm)
    if case.layout.pipeline > 1:
        _add(traffic, "pipeline", "all-reduce", 2, 32 + 8)
    if case.tensor > 1:
        _add(traffic, "tensor", "all-reduce", 1, 8)
