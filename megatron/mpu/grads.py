"""Parameters and gradients in flat buckets: their reduction over data-parallel ranks, and the norm.

Buckets are filled in the order in which the backward finishes with the parameters, and the reduction of a bucket
starts when the last gradient of its parameters is there. With ZeRO-1 (Rajbhandari et al., arXiv 1910.02054) a
data-parallel rank owns one of equal parts of each bucket: gradients are reduce-scattered, the owner updates its part,
and the weights are all-gathered while the next forward begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from megatron.mpu.context import ParallelContext
from megatron.mpu.group import DONE, Pending
from megatron.mpu.sharding import Piece, ShardSpec, pieces_of, shard_of
from megatron.ops.adamw import sum_of_squares

_ALIGNMENT = 16  # elements: a parameter starts on a cache line


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stretch of a rank's own part of a bucket whose elements are treated alike.

    decay: with weight decay; rate: factor of the learning rate; counted: in the norm by this rank; partial: summed over
    the tensor group (`ShardSpec`).
    """

    start: int
    stop: int
    decay: bool
    rate: float
    counted: bool
    partial: bool


@dataclass(frozen=True, kw_only=True)
class BucketLayout:
    """Which parameters lie side by side in a bucket, and where: `offsets`, elements, one a parameter.

    size: elements of the bucket, with what aligns parameters and makes parts equal; own, runs, tied: see `Bucket`.
    """

    named: tuple[tuple[str, nn.Parameter], ...]
    offsets: tuple[int, ...]
    size: int
    own: slice
    runs: tuple[Run, ...]
    tied: bool


def full_rate(name: str) -> float:
    """The factor of the learning rate of a parameter where nothing else is said."""
    del name
    return 1.0


def bucket_layouts(
    modules: Sequence[nn.Module],
    context: ParallelContext,
    *,
    sharded: bool,
    bucket_size: int,
    rate_of: Callable[[str], float] = full_rate,
) -> list[BucketLayout]:
    """How the parameters of some modules are divided into buckets. Takes only their names, shapes and `ShardSpec`s.

    sharded, bucket_size, rate_of: as in `FlatParameters`.
    """
    named = [item for module in reversed(modules) for item in reversed(list(module.named_parameters()))]
    sharded = sharded and context.data.size > 1
    return [_layout(group, context, rate_of, sharded=sharded) for group in _grouped(named, bucket_size)]


def _layout(
    named: Sequence[tuple[str, nn.Parameter]],
    context: ParallelContext,
    rate_of: Callable[[str], float],
    *,
    sharded: bool,
) -> BucketLayout:
    tied = any(shard_of(parameter).tied for _, parameter in named)
    counted_here = not tied or context.embedding.rank == 0
    kinds = {name: (*_kind(parameter), rate_of(name)) for name, parameter in named}
    offsets: dict[str, int] = {}
    offset = 0
    stretches = []
    for kind in sorted(set(kinds.values())):
        start = offset
        for name, parameter in named:
            if kinds[name] == kind:
                offsets[name] = offset
                offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        decay, divided, partial, rate = kind
        counted = counted_here and (divided or context.tensor.rank == 0) and rate > 0
        stretches.append((start, offset, decay, rate, counted, partial))
    members = context.data.size if sharded else 1
    share = -(-offset // members // _ALIGNMENT) * _ALIGNMENT
    own = slice(share * context.data.rank, share * (context.data.rank + 1)) if sharded else slice(0, share)
    runs = tuple(
        Run(start=low - own.start, stop=high - own.start, decay=decay, rate=rate, counted=counted, partial=partial)
        for start, stop, decay, rate, counted, partial in stretches
        if (low := max(start, own.start)) < (high := min(stop, own.stop))
    )
    return BucketLayout(
        named=tuple(named),
        offsets=tuple(offsets[name] for name, _ in named),
        size=share * members,
        own=own,
        runs=runs,
        tied=tied,
    )


@dataclass(kw_only=True)
class Bucket:
    """Some parameters side by side. weights [n], in the dtype of computation; gradients: fp32 [n].

    own: the part that this rank updates, all of it without ZeRO. masters: fp32, the own part; in fp32 part of weights.
    tied: the bucket of a tensor that two pipeline stages hold.
    """

    names: tuple[str, ...]
    weights: Tensor
    gradients: Tensor
    masters: Tensor
    own: slice
    runs: tuple[Run, ...]
    tied: bool
    missing: int = 0
    reducing: Pending = DONE
    gathering: Pending = DONE

    @property
    def own_gradients(self) -> Tensor:
        """The part of the gradients that this rank updates with."""
        return self.gradients[self.own]


class FlatParameters:
    """The parameters of some modules moved into buckets.

    Gradients are summed in fp32 in the buckets: operations add them to their parameter's `main_grad`, a view of its
    bucket, and what autograd gives instead is added to it.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        dtype: torch.dtype,
        context: ParallelContext,
        *,
        sharded: bool = False,
        bucket_size: int = 40_000_000,
        units: Sequence[nn.Module] = (),
        rate_of: Callable[[str], float] = full_rate,
    ) -> None:
        """Moves the modules to the context's device. Decay: all parameters of two or more dimensions.

        sharded: ZeRO-1. bucket_size: elements at which a bucket is closed. units: parts of the modules that are called
        one after another; a call waits for the weights that are still being gathered. rate_of: the factor of the
        learning rate of a parameter, by its global name; one of 0 gets no updates and does not count in the norm.
        """
        self.context, self.dtype = context, dtype
        self.sharded = sharded and context.data.size > 1
        self._next = 0
        self._finished = False
        self.shards: dict[str, ShardSpec] = {}
        self._places: dict[str, tuple[int, int, torch.Size]] = {}  # bucket, offset in it, local shape
        self._home: dict[nn.Parameter, Bucket] = {}
        self._nodes: list[Node] = []  # kept, for their hooks live as long as they
        layouts = bucket_layouts(modules, context, sharded=sharded, bucket_size=bucket_size, rate_of=rate_of)
        self.buckets = [self._new_bucket(number, layout) for number, layout in enumerate(layouts)]
        self._places = {name: self._places[name] for m in modules for name, _ in m.named_parameters()}  # in their order
        for unit in units if self.sharded else ():
            self._wait_before(unit)

    @property
    def names(self) -> list[str]:
        """Global names of the parameters."""
        return list(self._places)

    def pieces(self, owned: Sequence[Tensor], *, prefix: str = "", once: bool = False) -> list[Piece]:
        """The blocks of global tensors that lie in `owned`: one tensor a bucket, of its own part, like the masters.

        prefix: goes before the parameters' names. once: each element on one rank of all only, for saving; data-parallel
        ranks that hold the same divide it.
        """
        found: list[Piece] = []
        for name, (number, offset, shape) in self._places.items():
            bucket, shard = self.buckets[number], self.shards[name]
            if once and (
                (shard.dim is None and self.context.tensor.rank > 0) or (shard.tied and self.context.embedding.rank > 0)
            ):
                continue
            begin, low, high = bucket.own.start, bucket.own.start, bucket.own.stop
            if once and not self.sharded:
                share = -(-(high - low) // self.context.data.size)
                low, high = share * self.context.data.rank, min(high, share * (self.context.data.rank + 1))
            first, last = max(low, offset), min(high, offset + shape.numel())
            if first < last:
                elements = owned[number][first - begin : last - begin]
                found += pieces_of(prefix + name, shard, tuple(shape), elements, first - offset)
        return found

    def publish(self) -> None:
        """Give the masters' values to the modules of all ranks."""
        for bucket in self.buckets:
            if bucket.masters.data_ptr() != bucket.weights[bucket.own].data_ptr():
                bucket.weights[bucket.own].copy_(bucket.masters)
        self.start_gathering()

    def start_gathering(self) -> None:
        """Give each rank's part of the weights to the others (ZeRO), in the order of the next forward."""
        for bucket in reversed(self.buckets):
            if self.sharded:
                bucket.gathering = self.context.data.start_all_gather(bucket.weights, bucket.weights[bucket.own])

    def wait_for_weights(self) -> None:
        """Wait until the modules have all weights that `publish` gave."""
        for bucket in self.buckets:
            _wait_for_weights(bucket)

    def begin_step(self, micro_batches: int) -> None:
        """Forget the gradients; the next backwards are those of `micro_batches` micro-batches."""
        self._next = 0
        self._finished = False
        for bucket in self.buckets:
            bucket.gradients.zero_()
            bucket.missing = len(bucket.names) * micro_batches

    def finish_reduction(self) -> None:
        """Wait until the own parts of the gradients are summed over all ranks that have summands.

        Does nothing once that is done, until the next `begin_step`.
        """
        if self._finished:
            return
        self._finished = True
        while self._next < len(self.buckets):
            self._start_reduction()
        for bucket in self.buckets:
            bucket.reducing.wait()
            bucket.reducing = DONE
            if bucket.tied:
                self.context.embedding.all_reduce_(bucket.own_gradients)
        parts = [bucket.own_gradients[run.start : run.stop] for bucket, run in self._runs() if run.partial]
        if parts:
            joined = self.context.tensor.all_reduce_(torch.cat(parts))
            for part, total in zip(parts, joined.split([part.numel() for part in parts]), strict=True):
                part.copy_(total)

    def gradient_norm(self) -> float:
        """Euclidean norm of the whole model's gradient, each element of a global tensor counted once; in fp64."""
        squares = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for bucket, run in self._runs():
            if run.counted:
                squares += sum_of_squares(bucket.own_gradients[run.start : run.stop])
        self.context.tensor.all_reduce_(squares)
        self.context.pipeline.all_reduce_(squares)
        if self.sharded:
            self.context.data.all_reduce_(squares)
        return float(squares.sqrt())

    def _runs(self) -> list[tuple[Bucket, Run]]:
        return [(bucket, run) for bucket in self.buckets for run in bucket.runs]

    def _new_bucket(self, number: int, layout: BucketLayout) -> Bucket:
        context = self.context
        weights = torch.zeros(layout.size, dtype=self.dtype, device=context.device)
        gradients = torch.zeros(layout.size, device=context.device)
        initial = torch.zeros(layout.size, device=context.device) if self.dtype != torch.float32 else weights
        for (name, parameter), start in zip(layout.named, layout.offsets, strict=True):
            self._places[name] = (number, start, parameter.shape)
            place = slice(start, start + parameter.numel())
            initial[place].view(parameter.shape).copy_(parameter.data)
            weights[place].view(parameter.shape).copy_(parameter.data)
            parameter.data = weights[place].view(parameter.shape)
            self.shards[name] = shard_of(parameter)
        own = layout.own
        masters = initial[own] if self.dtype == torch.float32 or not self.sharded else initial[own].clone()
        bucket = Bucket(
            names=tuple(name for name, _ in layout.named),
            weights=weights,
            gradients=gradients,
            masters=masters,
            own=own,
            runs=layout.runs,
            tied=layout.tied,
        )
        for (_, parameter), start in zip(layout.named, layout.offsets, strict=True):
            self._home[parameter] = bucket
            self._collect(bucket, parameter, gradients[start : start + parameter.numel()].view(parameter.shape))
        return bucket

    def _collect(self, bucket: Bucket, parameter: nn.Parameter, total: Tensor) -> None:
        """Lead the gradients of a parameter, from autograd and from elsewhere, into their place."""

        owner = weakref.ref(self)  # nodes, which live as long as their owner, hold what they call

        def arrived(*_: object) -> None:
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad = None
            flat = owner()
            assert flat is not None
            flat._arrived(bucket)

        parameter.main_grad, parameter.arrived = total, arrived  # type: ignore[attr-defined]
        # The node where a parameter's gradients meet is reached once a backward, with or without a gradient.
        node = get_gradient_edge(parameter).node
        node.register_hook(arrived)
        self._nodes.append(node)

    def _arrived(self, bucket: Bucket) -> None:
        bucket.missing -= 1
        # In the order of the buckets, which is the same on all ranks.
        while self._next < len(self.buckets) and self.buckets[self._next].missing == 0:
            self._start_reduction()

    def _start_reduction(self) -> None:
        bucket = self.buckets[self._next]
        self._next += 1
        data = self.context.data
        if self.sharded:
            bucket.reducing = data.start_reduce_scatter(bucket.own_gradients, bucket.gradients)
        else:
            bucket.reducing = data.start_all_reduce_(bucket.gradients)

    def _wait_before(self, unit: nn.Module) -> None:
        """Let a unit's forward wait for its own weights, and for the table that a stage's head may share."""
        own = {id(self._home[parameter]) for parameter in unit.parameters()}
        waited = [bucket for bucket in self.buckets if bucket.tied or id(bucket) in own]

        def wait(module: nn.Module, arguments: object) -> None:
            for bucket in waited:
                _wait_for_weights(bucket)

        unit.register_forward_pre_hook(wait)


def _kind(parameter: nn.Parameter) -> tuple[bool, bool, bool]:
    """(decay, divided, partial) of a parameter."""
    shard = shard_of(parameter)
    return parameter.dim() >= 2, shard.dim is not None, shard.partial


def _grouped(named: Sequence[tuple[str, nn.Parameter]], size: int) -> list[list[tuple[str, nn.Parameter]]]:
    """Parameters in groups of about `size` elements, in order; one that is tied stands alone.

    Alone, because both stages that hold it must sum and divide it alike, to the bit.
    """
    groups: list[list[tuple[str, nn.Parameter]]] = []
    elements = size
    for name, parameter in named:
        tied = shard_of(parameter).tied
        if elements >= size or tied:
            groups.append([])
            elements = 0
        groups[-1].append((name, parameter))
        elements = size if tied else elements + parameter.numel()
    return groups


def _wait_for_weights(bucket: Bucket) -> None:
    bucket.gathering.wait()
    bucket.gathering = DONE
