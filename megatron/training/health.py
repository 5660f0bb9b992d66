"""Signs that a run is not well: replicas that differ, losses that jump, ranks that are slow."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron.errors import JobError
from megatron.mpu.context import ParallelContext
from megatron.mpu.group import Group
from megatron.mpu.pulse import names, plural
from megatron.mpu.sharding import shard_of

SLOW = 1.2
"""A rank that works this much longer than the median is named."""
MOST_NAMES = 3
_MEMORY = 0.98  # of the running mean of losses: some 50 steps


def check_replicas(chunks: Sequence[nn.Module], context: ParallelContext) -> None:
    """Compare what several ranks hold in common, bit for bit; collective.

    The weights over the data group, what is not divided over the tensor group, and tied tables over the embedding
    group. A broken device can change them without any other sign. Raises `JobError` on all ranks with the ranks and
    tensors that differ from most.
    """
    named = [item for chunk in chunks for item in chunk.named_parameters()]
    found: list[str] = []
    for group, held in (
        (context.data, named),
        (context.tensor, [(name, p) for name, p in named if shard_of(p).dim is None]),
        (context.embedding, [(name, p) for name, p in named if shard_of(p).tied]),
    ):
        if group.size > 1 and held:
            found += _differences(group, [name for name, _ in held], torch.stack([_bits(p) for _, p in held]), context)
    everywhere = context.world.any(bool(found), context.device)
    if everywhere:
        lines = sorted({line for part in context.world.gather_objects(found) for line in part})
        raise JobError("replicas of the model differ, so a device or a link is not sound:\n  " + "\n  ".join(lines))


def _bits(parameter: Tensor) -> Tensor:
    """A checksum: bits as numbers, each times its place, in the ring of int64."""
    bits = parameter.detach().reshape(-1).view(torch.int32 if parameter.element_size() == 4 else torch.int16)
    return (bits.long() * torch.arange(1, bits.numel() + 1, device=bits.device)).sum()


def _differences(group: Group, tensors: Sequence[str], sums: Tensor, context: ParallelContext) -> list[str]:
    highest, lowest = group.all_reduce_(sums.clone(), "max"), group.all_reduce_(sums.clone(), "min")
    unlike = (highest != lowest).nonzero().flatten().tolist()
    if not unlike:
        return []
    of_members = group.gather_objects(sums[unlike].tolist())
    lines = []
    for place, number in enumerate(unlike[:MOST_NAMES]):
        values = [member[place] for member in of_members]
        usual = max(Counter(values).items(), key=lambda item: (item[1], item[0] == values[0]))[0]
        ranks = [rank for rank, value in zip(group.ranks, values, strict=True) if value != usual]
        where = names(ranks, context.job.processes) if context.job is not None else plural(ranks)
        lines.append(f"{where}: {tensors[number]}, in the {group.name} group ({plural(group.ranks)})")
    return lines


@dataclass
class SpikeWatch:
    """The running mean of a run's losses, against which a spike is one. threshold: times the mean; None for never."""

    threshold: float | None
    mean: float = 0.0
    steps: int = 0

    def is_spike(self, loss: float) -> bool:
        """Whether the loss of a step jumps; it is then not taken into the mean."""
        spike = self.threshold is not None and self.steps >= 10 and loss > self.threshold * self.mean
        if not spike:
            self.steps += 1
            self.mean += (loss - self.mean) * max(1 - _MEMORY, 1 / self.steps)
        return spike


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds of work of ranks in a step, without waiting for others, as far as the host sees it."""

    median: float
    most: float
    slowest_rank: int

    def warning(self, context: ParallelContext) -> str | None:
        """Who holds up the others, if anyone does."""
        if self.most <= SLOW * self.median:
            return None
        processes = context.job.processes if context.job is not None else None
        who = names([self.slowest_rank], processes) if processes else f"rank {self.slowest_rank}"
        return f"{who} is slow: {self.most * 1000:.0f} ms of work a step, the median {self.median * 1000:.0f} ms"


def spread(seconds: float, context: ParallelContext) -> Spread | None:
    """How the ranks' seconds of work differ; collective; None for a process alone."""
    if context.world.size == 1:
        return None
    own = torch.tensor([seconds], dtype=torch.float64, device=context.device)
    values = context.world.all_gather(own, 0).tolist()
    most = max(values)
    return Spread(median=statistics.median_low(values), most=most, slowest_rank=values.index(most))
