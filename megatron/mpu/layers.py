"""Linear layers, embeddings and LayerNorm whose weights or inputs are divided over the tensor-parallel group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.linear import WeightQueue, linear
from megatron.mpu.regions import reduce_from_tensor_region, reduce_scatter_to_sequence_region
from megatron.mpu.sharding import Initial, new_parameter, shard_of

ZEROS, ONES = Initial(), Initial(mean=1.0)


class Linear(nn.Module):
    """A linear layer that every tensor-parallel rank holds whole: [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter((outputs, inputs), Initial(std=std))
        self.bias = new_parameter((outputs,), ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class ColumnParallelLinear(nn.Module):
    """A linear layer with its outputs divided over the group: [s, b, inputs] -> [s, b, outputs / tp].

    Under sequence parallelism the input is [s / tp, b, inputs].
    """

    def __init__(self, inputs: int, outputs: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.queue: WeightQueue | None = None
        rank, size = self.group.rank, self.group.size
        self.weight = new_parameter((outputs, inputs), Initial(std=std), dim=0, rank=rank, size=size)
        self.bias = new_parameter((outputs,), ZEROS, dim=0, rank=rank, size=size)

    def forward(self, x: Tensor) -> Tensor:
        along = self.sequence_parallel
        return linear(x, self.weight, self.bias, group=self.group, sequence_parallel=along, queue=self.queue)


class RowParallelLinear(nn.Module):
    """A linear layer with its inputs divided over the group: [s, b, inputs / tp] -> [s, b, outputs].

    The outputs are summed over the group, then the bias is added. Under sequence parallelism the output is
    [s / tp, b, outputs].
    """

    def __init__(self, inputs: int, outputs: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.group = context.tensor
        self.combine = reduce_scatter_to_sequence_region if context.sequence_parallel else reduce_from_tensor_region
        self.queue: WeightQueue | None = None
        self.weight = new_parameter(
            (outputs, inputs), Initial(std=std), dim=1, rank=self.group.rank, size=self.group.size
        )
        self.bias = new_parameter((outputs,), ZEROS, partial=context.sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        if self.group.size == 1:
            return linear(x, self.weight, self.bias, queue=self.queue)
        return self.combine(linear(x, self.weight, None, queue=self.queue), self.group) + self.bias


def put_off_weight_gradients(module: nn.Module) -> WeightQueue:
    """Give the divided linear layers of a module a queue for their weight gradients; it starts closed."""
    queue = WeightQueue()
    for layer in module.modules():
        if isinstance(layer, (ColumnParallelLinear, RowParallelLinear)):
            layer.queue = queue
    return queue


class Embedding(nn.Module):
    """A table that every tensor-parallel rank holds whole: ids [...] -> [..., width]."""

    def __init__(self, rows: int, width: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter((rows, width), Initial(std=std), partial=context.sequence_parallel)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class VocabParallelEmbedding(nn.Module):
    """The word table with its rows divided over the group: ids [s, b] -> [s, b, width].

    A rank looks up the ids in its rows and gives zero for the others; the sum over the group is the result, of which
    sequence parallelism keeps [s / tp, b, width]. tied: see `ShardSpec`.
    """

    def __init__(self, rows: int, width: int, context: ParallelContext, *, std: float, tied: bool = False) -> None:
        super().__init__()
        self.group = context.tensor
        self.combine = reduce_scatter_to_sequence_region if context.sequence_parallel else reduce_from_tensor_region
        self.weight = new_parameter(
            (rows, width), Initial(std=std), dim=0, rank=self.group.rank, size=self.group.size, tied=tied
        )

    def forward(self, ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(ids, self.weight)
        local = ids - shard_of(self.weight).start
        outside = (local < 0) | (local >= self.weight.shape[0])
        words = F.embedding(local.masked_fill(outside, 0), self.weight)
        return self.combine(words.masked_fill(outside.unsqueeze(-1), 0.0), self.group)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension; statistics in fp32. partial: see `ShardSpec`."""

    def __init__(self, width: int, epsilon: float, *, partial: bool = False) -> None:
        super().__init__()
        self.weight = new_parameter((width,), ONES, partial=partial)
        self.bias = new_parameter((width,), ZEROS, partial=partial)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class VocabParallelBias(nn.Module):
    """The bias of the vocabulary's logits, divided like the word table."""

    def __init__(self, rows: int, context: ParallelContext) -> None:
        super().__init__()
        group = context.tensor
        self.bias = new_parameter((rows,), ZEROS, dim=0, rank=group.rank, size=group.size)


def vocabulary_logits(x: Tensor, word_table: nn.Parameter, bias: nn.Parameter, context: ParallelContext) -> Tensor:
    """Logits of this rank's rows of the vocabulary: x [n, h] -> [n, V / tp]; padding rows get -inf."""
    logits = linear(x, word_table, bias, group=context.tensor)
    shard = shard_of(word_table)
    if shard.dim is not None and shard.size < word_table.shape[0]:
        padding = torch.arange(word_table.shape[0], device=x.device) >= shard.size
        logits = logits.masked_fill(padding, float("-inf"))
    return logits
