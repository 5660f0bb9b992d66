"""Linear layers, embeddings and LayerNorm whose weights or inputs are divided over the tensor-parallel group."""

from __future__ import annotations

from torch import Tensor, nn

from megatron.mpu.context import ParallelContext
from megatron.mpu.linear import WeightQueue, linear
from megatron.mpu.regions import reduce_from_tensor_region, reduce_scatter_to_sequence_region
from megatron.mpu.sharding import Initial, new_parameter, shard_of
from megatron.ops.add_norm import Norm, layernorm
from megatron.ops.embedding import embedding_sum

ZEROS, ONES = Initial(), Initial(mean=1.0)


class Linear(nn.Module):
    """A linear layer that every tensor-parallel rank holds whole: [..., inputs] -> [..., outputs].

    In this and the next two, `product` is the layer without its bias, for those who add it in what follows.
    """

    def __init__(self, inputs: int, outputs: int, *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter((outputs, inputs), Initial(std=std))
        self.bias = new_parameter((outputs,), ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, None)


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
        return self._product(x, self.bias)

    def product(self, x: Tensor) -> Tensor:
        return self._product(x, None)

    def _product(self, x: Tensor, bias: nn.Parameter | None) -> Tensor:
        along = self.sequence_parallel
        return linear(x, self.weight, bias, group=self.group, sequence_parallel=along, queue=self.queue)


class RowParallelLinear(nn.Module):
    """A linear layer with its inputs divided over the group: [s, b, inputs / tp] -> [s, b, outputs].

    The outputs are summed over the group; the bias is for whoever adds the residual. Under sequence parallelism the
    output is [s / tp, b, outputs].
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

    def product(self, x: Tensor) -> Tensor:
        return self.combine(linear(x, self.weight, None, queue=self.queue), self.group)


def put_off_weight_gradients(module: nn.Module) -> WeightQueue:
    """Give the divided linear layers of a module a queue for their weight gradients; it starts closed."""
    queue = WeightQueue()
    for layer in module.modules():
        if isinstance(layer, (ColumnParallelLinear, RowParallelLinear)):
            layer.queue = queue
    return queue


class Embedding(nn.Module):
    """A table that every tensor-parallel rank holds whole."""

    def __init__(self, rows: int, width: int, context: ParallelContext, *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter((rows, width), Initial(std=std), partial=context.sequence_parallel)


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
        return self.combine(embedding_sum([self.local(ids)], [self.weight]), self.group)

    def local(self, ids: Tensor) -> Tensor:
        """The rows of this rank's part of the table; -1 for those of other ranks."""
        if self.group.size == 1:
            return ids
        local = ids - shard_of(self.weight).start
        return local.masked_fill((local < 0) | (local >= self.weight.shape[0]), -1)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension; statistics in fp32. partial: see `ShardSpec`."""

    def __init__(self, width: int, epsilon: float, *, partial: bool = False) -> None:
        super().__init__()
        self.weight = new_parameter((width,), ONES, partial=partial)
        self.bias = new_parameter((width,), ZEROS, partial=partial)
        self.norm = Norm(weight=self.weight, shift=self.bias, epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return layernorm(x, self.norm)


class VocabParallelBias(nn.Module):
    """The bias of the vocabulary's logits, divided like the word table."""

    def __init__(self, rows: int, context: ParallelContext) -> None:
        super().__init__()
        group = context.tensor
        self.bias = new_parameter((rows,), ZEROS, dim=0, rank=group.rank, size=group.size)


def vocabulary_product(x: Tensor, word_table: nn.Parameter, context: ParallelContext) -> Tensor:
    """Logits of this rank's rows of the vocabulary without their bias: x [n, h] -> [n, V / tp]."""
    return linear(x, word_table, None, group=context.tensor)
