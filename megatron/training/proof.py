"""Proof of a layout on the user's own data: the same steps in it and in one process, figure by figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from megatron.config import ModelConfig, ParallelConfig, PrecisionConfig, PretrainConfig
from megatron.data.batches import Split, step_batches
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece
from megatron.optimizer.schedule import global_batch_size
from megatron.training.model import build, new_optimizer
from megatron.training.step import train_step

_HEAD_SIZE = 8  # of the model scaled down


@dataclass(frozen=True, kw_only=True)
class ProofConfig:
    """What is compared."""

    steps: int = 5
    """Training steps."""
    full_size: bool = False
    """Keep the width of the model [default: heads of at most 8, so that one process can hold it]."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run of some steps came to; tensors by global name, whole, on the CPU and on the first rank only.

    losses: name -> one value a step. gradients: of the first step, before clipping up to a factor; weights: at the end.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The largest relative difference of a kind of figures, and what it may be."""

    name: str
    difference: float
    where: str
    bound: float

    @property
    def equal(self) -> bool:
        """Whether the difference keeps the bound; a difference that is not a number does not."""
        return self.difference <= self.bound


def scaled_down(model: ModelConfig) -> ModelConfig:
    """The model with the same layers, heads and vocabulary, but narrow heads and MLP."""
    head = min(model.head_size, _HEAD_SIZE)
    ffn = (model.ffn_hidden_size or 4 * model.hidden_size) * head // model.head_size
    ffn = -(-ffn // model.num_attention_heads) * model.num_attention_heads  # divided as the heads are
    return dataclasses.replace(model, hidden_size=head * model.num_attention_heads, ffn_hidden_size=ffn)


def train_some(config: PretrainConfig, split: Split, steps: int, context: ParallelContext) -> Figures:
    """Train some steps in fp32 and collect what they came to; a collective of all ranks."""
    parallel, seed = config.parallel, config.training.seed
    model = build(config.model, parallel, PrecisionConfig(), seed, context)
    optimizer = new_optimizer(model.chunks, config.optimizer, PrecisionConfig(), parallel, context)
    batches = step_batches(
        split,
        global_batch_size=lambda consumed: global_batch_size(config, consumed),
        consumed=0,
        micro_batch_size=config.training.micro_batch_size,
        rank=context.data.rank,
        size=context.data.size,
        num_workers=0,
    )
    found = Figures(losses={"MLM loss": [], "SOP loss": [], "gradient norm": []})
    for step in range(steps):
        done = train_step(model, optimizer, next(batches), config.optimizer.lr, seed=seed)
        found.losses["MLM loss"].append(done.totals.mlm / max(done.totals.masked, 1.0))
        found.losses["SOP loss"].append(done.totals.sop / max(done.totals.samples, 1.0))
        found.losses["gradient norm"].append(done.outcome.grad_norm)
        if step == 0:
            found.gradients.update(_on_first_rank(optimizer.gradients(once=True), context))
    found.weights.update(_on_first_rank(optimizer.weights(once=True), context))
    return found


def prove(config: PretrainConfig, split: Split, proof: ProofConfig, context: ParallelContext) -> list[Comparison]:
    """Train in the layout and then, on the first rank, in one process; the comparisons, on all ranks.

    Raises `UserError` on all ranks if the first rank cannot train the model alone.
    """
    here = train_some(config, split, proof.steps, context)
    found: list[Comparison] = []
    with context.together():
        if context.is_main:
            alone = dataclasses.replace(config, parallel=ParallelConfig())
            try:
                found = compare(
                    here, train_some(alone, split, proof.steps, ParallelContext.single(str(context.device)))
                )
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise UserError(f"one process cannot hold the model: {error}; leave out --full-size") from None
    return context.world.broadcast_object(found)


def compare(found: Figures, expected: Figures) -> list[Comparison]:
    """The figures of a layout against those of one process.

    Losses and norms step by step; gradients and weights tensor by tensor, as the norm of the difference relative to
    the norm (of the whole gradient, for tensors whose own gradient is next to nothing).
    """
    comparisons = []
    for name, values in expected.losses.items():
        pairs = zip(found.losses[name], values, strict=True)
        worst = max((_relative(a, b), f"step {step}") for step, (a, b) in enumerate(pairs, start=1))
        comparisons.append(Comparison(name=name, difference=worst[0], where=worst[1], bound=1e-5))
    for name, ours, theirs in (
        ("gradients of step 1", found.gradients, expected.gradients),
        (f"weights after {len(found.losses['MLM loss'])} steps", found.weights, expected.weights),
    ):
        if ours.keys() != theirs.keys():
            raise UserError(f"{name}: the layout has other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
        floor = 1e-3 * float(torch.stack([tensor.norm() for tensor in theirs.values()]).norm())
        worst = max(_tensor_differences(ours, theirs, floor))
        comparisons.append(Comparison(name=name, difference=worst[0], where=worst[1], bound=1e-4))
    return comparisons


def _tensor_differences(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], floor: float
) -> Iterator[tuple[float, str]]:
    for name, tensor in theirs.items():
        difference = float((ours[name] - tensor).norm()) / max(float(tensor.norm()), floor, 1e-30)
        yield (difference if difference == difference else float("inf")), name


def _relative(a: float, b: float) -> float:
    difference = abs(a - b) / max(abs(b), 1e-30) if a != b else 0.0
    return difference if difference == difference else float("inf")


def _on_first_rank(pieces: Sequence[Piece], context: ParallelContext) -> dict[str, Tensor]:
    """Whole tensors from the pieces of all ranks; nothing on ranks but the first."""
    own = [replace(piece, tensor=piece.tensor.detach().cpu().clone()) for piece in pieces]
    wholes: dict[str, Tensor] = {}
    for part in context.world.gather_objects(own):
        for piece in part if context.is_main else ():
            whole = wholes.setdefault(piece.name, torch.empty(piece.global_shape))
            whole[tuple(slice(a, a + n) for a, n in zip(piece.offsets, piece.tensor.shape, strict=True))] = piece.tensor
    return wholes


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """The comparisons as lines."""
    width = max(len(comparison.name) for comparison in comparisons)
    return [f"{'':{width}}  largest relative difference  bound"] + [
        f"{c.name:{width}}  {c.difference:<27.1e}  {c.bound:.0e}  {'equal' if c.equal else 'DIFFERENT'} ({c.where})"
        for c in comparisons
    ]
