"""The time of a step on GPUs that are not here: products, memory traffic, launches, communication and bubble.

A model of a few terms, calibrated on published runs and held against others in docs/planner.md. It ranks layouts; its
absolute times are as good as that table says.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.model.parts import ModelPart, Recompute
from megatron.planning.case import Case
from megatron.planning.flops import pretraining_flops
from megatron.planning.profiles import Profile
from megatron.planning.states import state_bytes

# What is not in a data sheet, for all GPUs alike. Shares of what the sheet says:
_STREAMING = 0.80  # of the memory's bandwidth, by kernels that only pass over tensors
_LINKS = 0.75  # of a link, by ring collectives of megabytes
_FUSED_ATTENTION = 0.45  # of the peak
# Seconds:
_LAUNCH = 10e-6  # the host's time for one operation
_START = 25e-6  # latency of a collective in a machine; between machines twice that
# Operations of a layer's forward and backward, as written in megatron/model.
_FORWARD_LAUNCHES, _BACKWARD_LAUNCHES = 24, 45
_EXPOSED_MESSAGES = 0.5  # share of a stage's sends and receives that its work does not hide
_OPTIMIZER_TRAFFIC = 46  # bytes an owned parameter: zeroing, norm, clipping, and the update with its 16-bit copy


@dataclass(frozen=True, kw_only=True)
class Work:
    """Seconds of some work on one micro-batch, forward and backward, communication included."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(forward=self.forward + other.forward, backward=self.backward + other.backward)

    def __mul__(self, times: float) -> Work:
        return Work(forward=self.forward * times, backward=self.backward * times)

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A step. seconds; bubble: idle share of the pipeline's work; exposed: seconds of communication that nothing hides
    (sums of gradients, weights); flops: of the model, without recomputation, over all GPUs; tokens: with padding."""

    seconds: float
    bubble: float
    exposed: float
    flops: float
    tokens: int
    gpus: int
    peak: float

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs relative to what the GPUs could do in that time."""
        return self.flops / (self.seconds * self.gpus * self.peak)


def peak_flops(case: Case, profile: Profile) -> float:
    """FLOP/s of a GPU in the number format of a case."""
    return 1e12 * (profile.peak_32 if case.dtype == "fp32" else profile.peak_16)


def step_flops(case: Case) -> float:
    """Model FLOPs of a step over all GPUs, with no padding in its samples."""
    samples = case.samples * case.micro_batches * case.layout.data
    return pretraining_flops(
        case.model,
        tokens=case.step_tokens,
        squared_lengths=samples * case.sequence**2,
        masked=case.masked * case.micro_batches * case.layout.data,
        samples=samples,
    )


def estimate(case: Case, profile: Profile, *, overlapped: bool = True) -> Estimate:
    """A step on `profile` GPUs. overlapped: gradients are reduced beside the backward, as here, not after it."""
    stages = range(case.layout.pipeline)
    slowest = max((stage_work(case, profile, stage) for stage in _unlike(case)), key=lambda work: work.total)
    pipeline = slowest.total * case.micro_batches * (1.0 + case.bubble)
    last_backward = slowest.backward if overlapped else 0.0
    exposed = max(_gradients(case, profile, stage, last_backward, slowest.forward) for stage in {0, stages[-1]})
    update = max(_update(case, profile, stage) for stage in {0, stages[-1]})
    return Estimate(
        seconds=pipeline + exposed + update,
        bubble=case.bubble,
        exposed=exposed,
        flops=step_flops(case),
        tokens=case.step_tokens,
        gpus=case.layout.world_size,
        peak=peak_flops(case, profile),
    )


def _unlike(case: Case) -> list[int]:
    """Stages of which one is the slowest: the first, the last, and one between with the most layers."""
    stages = case.layout.pipeline
    between = max(
        range(1, stages - 1), key=lambda stage: sum(p.stop - p.first for p in case.parts(stage)), default=0
    )  # fmt: skip
    return sorted({0, between, stages - 1})


def stage_work(case: Case, profile: Profile, stage: int) -> Work:
    """One micro-batch through all parts of a stage."""
    total = Work()
    for part in case.parts(stage):
        total += part_work(case, profile, part)
        if case.layout.pipeline > 1:
            message = case.element * case.tokens * case.model.hidden_size / case.tensor
            across = case.tensor * case.layout.data >= profile.gpus_per_node
            seconds = _EXPOSED_MESSAGES * (message / _rate(profile, across) + _start(across))
            if case.tensor > 1 and not case.sequence_parallel:  # the receiver puts the shares together
                seconds += _gather(case, profile, case.tensor * message)
            total += Work(forward=seconds, backward=seconds)
    return total


def part_work(case: Case, profile: Profile, part: ModelPart) -> Work:
    """One micro-batch through a part of the model."""
    layers = part.stop - part.first
    recompute = Recompute.of(case.parallel)
    twice = sum(len(stretch) for stretch, again in recompute.stretches([""] * layers) if again)
    layer = layer_work(case, profile)
    total = layer * layers + Work(backward=layer.forward * twice)
    stream = 1.0 / (1e9 * profile.bandwidth * _STREAMING)
    if part.has_embeddings:
        passes = case.element * case.rows * case.model.hidden_size * 6 * stream
        combined = _sum(case, profile, case.element * case.tokens * case.model.hidden_size)
        total += Work(forward=passes + combined, backward=2 * passes)
    if part.has_heads:
        h, vocabulary, masked = case.model.hidden_size, case.vocabulary_rows, case.masked
        products = _products(case, profile, masked, h, h) + _products(case, profile, masked, vocabulary, h)
        passes = masked * vocabulary * (2 * case.element + 12) * stream
        gathered = _gather(case, profile, case.element * case.tokens * h) if case.sequence_parallel else 0.0
        total += Work(forward=products + passes + gathered, backward=2 * products + passes)
    return total


def layer_work(case: Case, profile: Profile) -> Work:
    """One micro-batch through one layer; with selective recomputation its backward includes attention once more."""
    model, t = case.model, case.tensor
    h, f, tokens = model.hidden_size, model.ffn_hidden_size, case.tokens
    products = sum(
        _products(case, profile, tokens, n, k)
        for n, k in ((3 * h // t, h), (h, h // t), (f // t, h), (h, f // t))
    )  # fmt: skip
    stream = case.element / (1e9 * profile.bandwidth * _STREAMING)
    passes = (14 * case.rows * h + 2 * tokens * f // t + 2 * tokens * h // t) * stream
    core = _attention(case, profile)
    again = core.forward if case.parallel.recompute_granularity == "selective" else 0.0
    forward_ends, backward_ends = _tensor_communication(case, profile, products)
    return Work(
        forward=max(products + passes + core.forward, _FORWARD_LAUNCHES * _LAUNCH) + forward_ends,
        backward=max(2 * products + 2 * passes + core.backward + again, _BACKWARD_LAUNCHES * _LAUNCH) + backward_ends,
    )


def _attention(case: Case, profile: Profile) -> Work:
    """Between the query-key-value product and the output product."""
    model = case.model
    heads, size, s = model.num_attention_heads // case.tensor, model.head_size, case.sequence
    flops = 4.0 * case.tokens * s * heads * size
    stream = case.element / (1e9 * profile.bandwidth * _STREAMING)
    if model.attention_dropout == 0.0:
        seconds = flops / (peak_flops(case, profile) * _FUSED_ATTENTION)
        passes = 6 * case.tokens * heads * size * stream
        return Work(forward=seconds + passes, backward=2.5 * seconds + 2 * passes)
    # Scores are written, and read and written by softmax and by dropout, and read by the second product.
    products = flops / (peak_flops(case, profile) * _efficiency(profile, s, s, size))
    passes = 6 * case.samples * heads * s * s * stream
    return Work(forward=products + passes, backward=2 * products + 1.5 * passes)


def _efficiency(profile: Profile, m: int, n: int, k: int) -> float:
    """The share of the peak that a product [m, k] x [k, n] reaches."""
    sides = 1.0
    for side in (m, n, k):
        sides *= side / (side + profile.half_size)
    return profile.products * sides


def _products(case: Case, profile: Profile, m: int, n: int, k: int) -> float:
    """Seconds of one product."""
    return 2.0 * m * n * k / (peak_flops(case, profile) * _efficiency(profile, m, n, k)) if m and n and k else 0.0


def _rate(profile: Profile, across: bool) -> float:
    """Bytes a second between two GPUs, across machines or in one."""
    return 1e9 * _LINKS * (profile.network if across else profile.link)


def _start(across: bool) -> float:
    return 2 * _START if across else _START


def _gather(case: Case, profile: Profile, whole: float) -> float:
    """Seconds to gather (or scatter the sum of) `whole` bytes over the tensor group."""
    t = case.tensor
    across = t > profile.gpus_per_node
    return (t - 1) / t * whole / _rate(profile, across) + _start(across) if t > 1 else 0.0


def _sum(case: Case, profile: Profile, whole: float) -> float:
    """Seconds to end a row-parallel product: an all-reduce, or under sequence parallelism a reduce-scatter."""
    return _gather(case, profile, whole) * (1 if case.sequence_parallel else 2)


def _tensor_communication(case: Case, profile: Profile, products: float) -> tuple[float, float]:
    """Seconds of a layer's forward and backward that communication over the tensor group adds.

    The sums of input gradients run beside the products for the weights' gradients, which take as long as the forward's,
    and the second gathering of inputs beside those of the inputs' gradients.
    """
    if case.tensor == 1:
        return 0.0, 0.0
    whole = case.element * case.tokens * case.model.hidden_size
    hidden = products / 2  # the column-parallel products are about half of all
    if not case.sequence_parallel:
        both = 2 * _sum(case, profile, whole)
        return both, max(0.0, both - hidden)
    gather = _gather(case, profile, whole)
    return 4 * gather, 2 * gather + 2 * max(0.0, 2 * gather - hidden)


def _data_rate(case: Case, profile: Profile) -> tuple[float, bool]:
    """Bytes a second of a ring over a data-parallel group, and whether it leaves the machine.

    A ring uses the adapters of all its members in a machine; as many rings as tensor-parallel ranks share them.
    """
    across = case.tensor * case.layout.data > profile.gpus_per_node
    members = max(1, min(case.layout.data, profile.gpus_per_node // case.tensor))
    return (min(_rate(profile, True) * members, _rate(profile, False)) if across else _rate(profile, False)), across


def _gradients(case: Case, profile: Profile, stage: int, last_backward: float, forward: float) -> float:
    """Seconds of summing gradients and gathering weights that neither backward nor forward hides."""
    states, d = state_bytes(case, stage), case.layout.data
    rate, across = _data_rate(case, profile)
    buckets = max(1, states.gradients // (4 * case.parallel.ddp_bucket_size))
    exposed = 0.0
    if d > 1:
        one_way = (d - 1) / d / rate
        start = _start(across) * buckets
        if case.parallel.use_distributed_optimizer:
            reducing, gathering = states.gradients * one_way + start, states.weights * one_way + start
        else:
            reducing, gathering = 2 * states.gradients * one_way + start, 0.0
        exposed += max(reducing / buckets, reducing - last_backward)  # the last bucket at least
        exposed += max(gathering / buckets if gathering else 0.0, gathering - forward)
    if case.layout.pipeline > 1:  # the word table's two holders
        table = 4 * case.vocabulary_rows * case.model.hidden_size
        table //= d if case.parallel.use_distributed_optimizer else 1
        exposed += 2 * table / 2 / _rate(profile, case.layout.world_size > profile.gpus_per_node)
    return exposed


def _update(case: Case, profile: Profile, stage: int) -> float:
    """Seconds of norm, clipping and AdamW."""
    own = state_bytes(case, stage).moments / 8
    return own * _OPTIMIZER_TRAFFIC / (1e9 * profile.bandwidth * _STREAMING)
