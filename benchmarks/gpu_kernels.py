"""The fused kernels on a GPU: the share of a copy's bytes a second, and torch.compile's kernels against them.

AdamW, which is no composition, is compared with torch's fused one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.mpu.random import site_key
from megatron.ops.adamw import Update, adamw_, sum_of_squares
from megatron.ops.operators import MOST_COLUMNS

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """An operation's kernels, and the bytes that they cannot but move.

    reference: the same of torch's operations, of `inputs`; torch.compile gets it if `compiled`, and its gradients of
    those inputs that have one.
    """

    name: str
    forward: Call
    forward_bytes: int
    backward: Call | None = None
    backward_bytes: int = 0
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...] = field(default=())
    compiled: bool = True


def seconds_of(call: Call, device: str, repetitions: int = 20) -> float:
    """Median seconds of a call, warm; on a GPU between events on its stream."""
    for _ in range(3):
        call()
    found = []
    for _ in range(repetitions):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def measured(rows: int, columns: int, device: str, copy: float) -> Mapping[str, Mapping[str, float]]:
    """Of each kernel on [rows, columns] in bf16: microseconds, the share of `copy` (GB/s), torch.compile against it."""
    found: dict[str, dict[str, float]] = {}
    operations = cross_entropy(rows, columns, device) if columns > MOST_COLUMNS else fused(rows, columns, device)
    for operation in operations:
        compiled = device == "cuda" and operation.compiled
        reference = torch.compile(operation.reference, dynamic=False) if compiled else operation.reference
        seconds = seconds_of(operation.forward, device)
        theirs = seconds_of(lambda: reference(*operation.inputs), device)  # noqa: B023
        found[operation.name] = _row(operation.forward_bytes, seconds, theirs, copy)
        if operation.backward is None:
            continue
        leaves = [x for x in operation.inputs if x.requires_grad]
        output = reference(*operation.inputs)
        gradient = torch.randn_like(output)
        seconds = seconds_of(operation.backward, device)
        theirs = seconds_of(lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True), device)  # noqa: B023
        found[f"{operation.name}, backward"] = _row(operation.backward_bytes, seconds, theirs, copy)
    return found


def _row(size: int, seconds: float, theirs: float, copy: float) -> dict[str, float]:
    return {
        "microseconds": 1e6 * seconds,
        "of_copy": size / seconds / 1e9 / copy,
        "torch_compile_against_it": theirs / seconds,
    }


def fused(rows: int, columns: int, device: str) -> Iterator[Fused]:
    """The operations on activations [rows, columns] in bf16."""
    operators, size = torch.ops.megatron, rows * columns

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    x, block, residual = (tensor(rows, columns) for _ in range(3))
    bias, weight, shift = (tensor(columns) for _ in range(3))
    gradient = torch.randn_like(x)
    keys = torch.randint(-(2**63), 2**63 - 1, (rows,), device=device)
    dropout, sums = (keys, site_key(1, 1), 0.1), [torch.zeros(columns, device=device) for _ in range(3)]
    nothing = (None, 0, 0.0)
    with torch.no_grad():
        total, _, mean, rstd = operators.add_norm(block, bias, residual, weight, shift, 1e-5, *dropout)
        _, _, own_mean, own_rstd = operators.add_norm(None, None, x, weight, shift, 1e-5, *nothing)
    yield Fused(
        name="LayerNorm",
        forward=no_grad(lambda: operators.add_norm(None, None, x, weight, shift, 1e-5, *nothing)),
        forward_bytes=4 * size,
        backward=no_grad(
            lambda: operators.add_norm_gradients(
                None, gradient, x, weight, own_mean, own_rstd, False, None, sums[1], sums[2], *nothing
            )
        ),
        backward_bytes=6 * size,
        reference=lambda x, weight, shift: F.layer_norm(x, (columns,), weight, shift),
        inputs=(x, weight, shift),
    )
    yield Fused(
        name="bias + dropout + residual + LayerNorm",
        forward=no_grad(lambda: operators.add_norm(block, bias, residual, weight, shift, 1e-5, *dropout)),
        forward_bytes=8 * size,
        backward=no_grad(
            lambda: operators.add_norm_gradients(
                gradient, gradient, total, weight, mean, rstd, True, *sums, *dropout
            )
        ),
        backward_bytes=10 * size,
        reference=_composed_norm,
        inputs=(block, bias, residual, weight, shift),
    )
    yield Fused(
        name="bias + GELU",
        forward=no_grad(lambda: operators.bias_activation(x, bias, 0)),
        forward_bytes=4 * size,
        backward=no_grad(lambda: operators.bias_activation_gradients(gradient, x, bias, sums[0], 0)),
        backward_bytes=6 * size,
        reference=lambda x, bias: F.gelu(x + bias),
        inputs=(x, bias),
    )
    scores = tensor(1, rows, columns)
    with torch.no_grad():
        probabilities, _ = operators.softmax(scores, None, 0.1, *dropout)
    yield Fused(
        name="softmax + dropout",
        forward=no_grad(lambda: operators.softmax(scores, None, 0.1, *dropout)),
        forward_bytes=6 * size,
        backward=no_grad(
            lambda: operators.softmax_gradients(gradient.view_as(scores), probabilities, 0.1, *dropout)
        ),
        backward_bytes=6 * size,
        reference=lambda scores: F.dropout(torch.softmax(scores * 0.1, -1), 0.1),
        inputs=(scores,),
    )
    yield Fused(
        name="sum over rows",
        forward=no_grad(lambda: operators.add_rows_(sums[0], x)),
        forward_bytes=2 * size,
        reference=lambda x: x.sum(0, dtype=torch.float32),
        inputs=(x,),
    )
    yield from optimizer(size, device)


def optimizer(size: int, device: str) -> Iterator[Fused]:
    """What is done with all parameters, of which there are `size`."""
    weights, gradients, first, second = (torch.zeros(size, device=device) for _ in range(4))
    copy, steps = torch.empty(size, device=device, dtype=torch.bfloat16), torch.ones((), device=device)
    update = Update(
        factor=1.0, learning_rate=1e-4, weight_decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, step=1
    )

    def by_torch(*state: Tensor) -> Tensor:
        torch._fused_adamw_(
            *([x] for x in state), [], [steps], lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return copy.copy_(state[0])

    yield Fused(
        name="AdamW and bf16 copy",
        forward=lambda: adamw_(weights, gradients, first, second, copy, update),
        forward_bytes=30 * size,
        reference=by_torch,
        inputs=(weights, gradients, first, second),
        compiled=False,
    )
    yield Fused(
        name="sum of squares",
        forward=lambda: sum_of_squares(gradients),
        forward_bytes=4 * size,
        reference=lambda x: torch.linalg.vector_norm(x, dtype=torch.float64),
        inputs=(gradients,),
    )


def cross_entropy(rows: int, columns: int, device: str) -> Iterator[Fused]:
    """The loss of bf16 logits [rows, columns]."""
    operators, size = torch.ops.megatron, rows * columns
    logits = torch.randn(rows, columns, device=device, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(columns, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels, factor = torch.randint(columns, (rows,), device=device), torch.ones(rows, device=device)
    of_bias = torch.zeros(columns, device=device)
    with torch.no_grad():
        largest, total, _ = operators.cross_entropy(logits, bias, labels, 0, columns)
    overwritten = logits.detach().clone()
    yield Fused(
        name="cross-entropy",
        forward=no_grad(lambda: operators.cross_entropy(logits, bias, labels, 0, columns)),
        forward_bytes=2 * size,
        backward=no_grad(
            lambda: operators.cross_entropy_gradients_(
                overwritten, bias, labels, largest, total, factor, of_bias, 0, columns
            )
        ),
        backward_bytes=4 * size,
        reference=lambda logits, bias: F.cross_entropy((logits + bias).float(), labels, reduction="none"),
        inputs=(logits, bias),
    )


def no_grad(call: Call) -> Call:
    """A kernel's call, which autograd does not see."""
    return torch.no_grad()(call)


def _composed_norm(block: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(residual + F.dropout(block + bias, 0.1), weight.shape, weight, shift)
