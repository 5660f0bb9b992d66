"""Linear layers and embeddings whose weights are divided over the tensor-parallel group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.regions import copy_to_tensor_region, reduce_from_tensor_region
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
    """A linear layer with its outputs divided over the group: [..., inputs] -> [..., outputs / tp].

    Backward all-reduces the gradient of the input.
    """

    def __init__(self, inputs: int, outputs: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.group = context.tensor
        place = {"dim": 0, "rank": self.group.rank, "size": self.group.size}
        self.weight = new_parameter((outputs, inputs), Initial(std=std), **place)
        self.bias = new_parameter((outputs,), ZEROS, **place)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(copy_to_tensor_region(x, self.group), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """A linear layer with its inputs divided over the group: [..., inputs / tp] -> [..., outputs].

    Forward all-reduces the output; the bias is added once, after it.
    """

    def __init__(self, inputs: int, outputs: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.group = context.tensor
        self.weight = new_parameter(
            (outputs, inputs), Initial(std=std), dim=1, rank=self.group.rank, size=self.group.size
        )
        self.bias = new_parameter((outputs,), ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.linear(x, self.weight, self.bias)
        return reduce_from_tensor_region(F.linear(x, self.weight), self.group) + self.bias


class Embedding(nn.Module):
    """A table that every tensor-parallel rank holds whole: ids [...] -> [..., width]."""

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter((rows, width), Initial(std=std))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class VocabParallelEmbedding(nn.Module):
    """The word table with its rows divided over the group: ids [...] -> [..., width].

    A rank looks up the ids in its rows and gives zero for the others; forward all-reduces.
    """

    def __init__(self, rows: int, width: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.group = context.tensor
        self.weight = new_parameter((rows, width), Initial(std=std), dim=0, rank=self.group.rank, size=self.group.size)

    def forward(self, ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(ids, self.weight)
        local = ids - shard_of(self.weight).start
        outside = (local < 0) | (local >= self.weight.shape[0])
        words = F.embedding(local.masked_fill(outside, 0), self.weight)
        return reduce_from_tensor_region(words.masked_fill(outside.unsqueeze(-1), 0.0), self.group)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension; statistics in fp32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = new_parameter((width,), ONES)
        self.bias = new_parameter((width,), ZEROS)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def local_heads(heads: int, context: ParallelContext) -> tuple[int, int]:
    """The first attention head of this rank and how many it has; `heads` is divisible by the group's size."""
    count = heads // context.tensor.size
    return context.tensor.rank * count, count


class VocabParallelBias(nn.Module):
    """The bias of the vocabulary's logits, divided like the word table."""

    def __init__(self, rows: int, context: ParallelContext) -> None:
        super().__init__()
        group = context.tensor
        self.bias = new_parameter((rows,), ZEROS, dim=0, rank=group.rank, size=group.size)


def vocabulary_logits(x: Tensor, word_table: nn.Parameter, bias: nn.Parameter, context: ParallelContext) -> Tensor:
    """Logits of this rank's rows of the vocabulary: x [n, h] -> [n, V / tp]; padding rows get -inf."""
    logits = F.linear(copy_to_tensor_region(x, context.tensor), word_table, bias)
    shard = shard_of(word_table)
    if shard.dim is not None and shard.size < word_table.shape[0]:
        padding = torch.arange(word_table.shape[0], device=x.device) >= shard.size
        logits = logits.masked_fill(padding, float("-inf"))
    return logits
