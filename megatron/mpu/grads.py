"""Parameters and gradients in flat fp32 buffers: reduction over data-parallel ranks, and the norm.

A buffer has four segments in a row: parameters with weight decay, then those without, each first the replicated
ones, then those divided over the tensor group. Masters and gradients share the offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import shard_of

_ALIGNMENT = 16  # elements: a parameter starts on a cache line


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of the buffers whose parameters are treated alike."""

    decay: bool
    divided: bool
    start: int
    stop: int


class FlatParameters:
    """The parameters of a module moved into flat buffers.

    masters, gradients: fp32 [n]. In fp32 the module's parameters are views of `masters` and autograd adds into
    `gradients`; in 16 bits the module computes with a flat copy and its gradients are added in fp32 as they appear.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, context: ParallelContext) -> None:
        """Moves the module to the context's device. Decay: all parameters of two or more dimensions."""
        self.context = context
        self.dtype = dtype
        named = list(module.named_parameters())
        self.segments: list[Segment] = []
        self._places: dict[str, tuple[int, torch.Size]] = {}
        offset = 0
        for decay in (True, False):
            for divided in (False, True):
                start = offset
                for name, parameter in named:
                    is_divided = shard_of(parameter).dim is not None
                    if (parameter.dim() >= 2, is_divided) == (decay, divided):
                        self._places[name] = (offset, parameter.shape)
                        offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
                self.segments.append(Segment(decay=decay, divided=divided, start=start, stop=offset))
        device = context.device
        self.masters = torch.zeros(offset, device=device)
        self.gradients = torch.zeros(offset, device=device)
        self._compute = self.masters if dtype == torch.float32 else torch.zeros(offset, dtype=dtype, device=device)
        for name, parameter in named:
            self.of(name, self.masters).copy_(parameter.data)
            parameter.data = self.of(name, self._compute)
            self._collect_gradient(parameter, self.of(name, self.gradients))
        self.publish()

    def of(self, name: str, buffer: Tensor) -> Tensor:
        """The part of a flat buffer that belongs to a parameter, in its local shape (a view)."""
        offset, shape = self._places[name]
        return buffer[offset : offset + shape.numel()].view(shape)

    @property
    def names(self) -> list[str]:
        """Global names of the parameters."""
        return list(self._places)

    def publish(self) -> None:
        """Give the masters' values to the module."""
        if self._compute is not self.masters:
            self._compute.copy_(self.masters)

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        self.gradients.zero_()

    def reduce_gradients(self) -> None:
        """Sum the gradients over data-parallel ranks."""
        self.context.data.all_reduce_(self.gradients)

    def gradient_norm(self) -> float:
        """Euclidean norm of the whole model's gradient, each element of a global tensor counted once; in fp64."""
        squares = torch.zeros(2, dtype=torch.float64, device=self.gradients.device)
        for segment in self.segments:
            part = self.gradients[segment.start : segment.stop]
            squares[int(segment.divided)] += torch.linalg.vector_norm(part, dtype=torch.float64) ** 2
        divided = self.context.tensor.all_reduce_(squares[1:].clone())
        return float((squares[0] + divided[0]).sqrt())

    def _collect_gradient(self, parameter: nn.Parameter, total: Tensor) -> None:
        if self.dtype == torch.float32:
            parameter.grad = total
            return

        def add(p: Tensor) -> None:
            if p.grad is not None:
                total.add_(p.grad)
                p.grad = None

        parameter.register_post_accumulate_grad_hook(add)
