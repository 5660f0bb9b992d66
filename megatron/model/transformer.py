"""The transformer layer in its two orders, and the stack of them. Hidden states are [s, b, h]."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from megatron.config import ModelConfig
from megatron.model.parts import ModelPart, Recompute, recomputed
from megatron.mpu.context import ParallelContext
from megatron.mpu.layers import ColumnParallelLinear, LayerNorm, RowParallelLinear
from megatron.mpu.random import DropoutKeys, local_heads, site_key
from megatron.ops.add_norm import Kept, add, add_norm
from megatron.ops.attention import attention
from megatron.ops.bias_activation import bias_activation

ATTENTION_SITE, ATTENTION_OUTPUT_SITE, MLP_OUTPUT_SITE = 0, 1, 2


def output_std(config: ModelConfig) -> float:
    """Standard deviation of the matrices that write into the residual stream.

    Divided by sqrt(2 x layers) for pre-LayerNorm (GPT-2, Megatron-LM); plain for the original BERT.
    """
    scale = math.sqrt(2.0 * config.num_layers) if config.architecture == "megatron-bert" else 1.0
    return config.init_method_std / scale


def frozen_output(x: Tensor) -> Tensor:
    """What a frozen part of the model gave, without the activations that only a backward through it would need.

    It wants a gradient, which nothing uses: what follows may compute those of its own weights only where one is wanted.
    """
    return x.detach().requires_grad_(torch.is_grad_enabled())


def rows_of(x: Tensor, wanted: Tensor | None) -> Tensor:
    """The rows of x [s, b, h], seen as [s * b, h], whose numbers are wanted: int64 [n] -> [n, h]; None for x."""
    return x if wanted is None else x.flatten(0, 1).index_select(0, wanted)


class SelfAttention(nn.Module):
    """Multi-head self-attention, heads divided over the tensor group: [s, b, h] -> [s, b, h], or [n, h] if wanted.

    The bias of the last product (`dense.bias`) is left to whoever adds the residual; in `MLP` too.
    """

    def __init__(self, config: ModelConfig, context: ParallelContext, number: int, *, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.heads = local_heads(config.num_attention_heads, context)[1]
        self.head_size = config.head_size
        self.probability = config.attention_dropout
        self.site = site_key(number, ATTENTION_SITE)
        h = config.hidden_size
        self.query_key_value = ColumnParallelLinear(h, 3 * h, context, std=config.init_method_std)
        self.dense = RowParallelLinear(h, h, context, std=output_std(config))

    def forward(self, x: Tensor, padding: Tensor | None, keys: DropoutKeys | None, wanted: Tensor | None) -> Tensor:
        qkv = self.query_key_value(x)
        qkv = qkv.view(*qkv.shape[:2], self.heads, 3, self.head_size)
        core = partial(
            attention,
            probability=self.probability,
            keys=None if keys is None else keys.attention,
            site_key=self.site,
        )
        context = recomputed(core, qkv, padding) if self.recompute else core(qkv, padding)
        return self.dense.product(rows_of(context, wanted))


class MLP(nn.Module):
    """Two linear layers with an activation between, divided over the tensor group: [s, b, h] -> [s, b, h]."""

    def __init__(self, config: ModelConfig, context: ParallelContext) -> None:
        super().__init__()
        h, ffn = config.hidden_size, config.ffn_hidden_size
        self.dense_h_to_4h = ColumnParallelLinear(h, ffn, context, std=config.init_method_std)
        self.dense_4h_to_h = RowParallelLinear(ffn, h, context, std=output_std(config))
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        inside = bias_activation(self.dense_h_to_4h.product(x), self.dense_h_to_4h.bias, self.activation)
        return self.dense_4h_to_h.product(inside)


class TransformerLayer(nn.Module):
    """One layer: [s, b, h] -> [s, b, h]; under sequence parallelism [s / tp, b, h] -> [s / tp, b, h].

    wanted: the rows that are read of the output, as in `rows_of`; the others serve as keys and values, and nothing
    behind the attention is computed for them: -> [n, h]. Not under sequence parallelism.

    megatron-bert normalises what enters a block and leaves the residual stream alone (arXiv 1909.08053); bert
    normalises the sum of the stream and the block's output (arXiv 1810.04805).
    """

    def __init__(
        self, config: ModelConfig, context: ParallelContext, number: int, *, recompute_attention: bool
    ) -> None:
        super().__init__()
        self.norm_first = config.architecture == "megatron-bert"
        self.probability = config.hidden_dropout
        self.attention_site = site_key(number, ATTENTION_OUTPUT_SITE)
        self.mlp_site = site_key(number, MLP_OUTPUT_SITE)
        partial_sums = context.sequence_parallel
        self.attention_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon, partial=partial_sums)
        self.attention = SelfAttention(config, context, number, recompute=recompute_attention)
        self.mlp_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon, partial=partial_sums)
        self.mlp = MLP(config, context)

    def forward(
        self, x: Tensor, padding: Tensor | None, keys: DropoutKeys | None, wanted: Tensor | None = None
    ) -> Tensor:
        hidden_keys = None if keys is None else keys.hidden if wanted is None else keys.hidden[wanted]
        after_attention = Kept(probability=self.probability, keys=hidden_keys, site_key=self.attention_site)
        after_mlp = Kept(probability=self.probability, keys=hidden_keys, site_key=self.mlp_site)
        attention_bias, mlp_bias = self.attention.dense.bias, self.mlp.dense_4h_to_h.bias
        if self.norm_first:
            block = self.attention(self.attention_layernorm(x), padding, keys, wanted)
            x = rows_of(x, wanted)
            x, normalized = add_norm(block, attention_bias, x, after_attention, self.mlp_layernorm.norm)
            return add(self.mlp(normalized), mlp_bias, x, after_mlp)
        block = self.attention(x, padding, keys, wanted)
        _, x = add_norm(block, attention_bias, rows_of(x, wanted), after_attention, self.attention_layernorm.norm)
        _, x = add_norm(self.mlp(x), mlp_bias, x, after_mlp, self.mlp_layernorm.norm)
        return x


class Encoder(nn.Module):
    """A part's stack of layers; megatron-bert ends with one more LayerNorm."""

    def __init__(self, config: ModelConfig, context: ParallelContext, part: ModelPart, recompute: Recompute) -> None:
        super().__init__()
        self.recompute = recompute
        self.frozen_layers = part.frozen_layers or 0
        in_attention = recompute.granularity == "selective"
        # Keyed by the layer's number in the whole model, so that names are global.
        self.layers = nn.ModuleDict(
            {
                str(number): TransformerLayer(config, context, number, recompute_attention=in_attention)
                for number in range(part.first, part.stop)
            }
        )
        self.final_layernorm = None
        if config.architecture == "megatron-bert" and part.has_heads:
            partial_sums = context.sequence_parallel
            self.final_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon, partial=partial_sums)

    def forward(
        self, x: Tensor, padding: Tensor | None, keys: DropoutKeys | None, wanted: Tensor | None = None
    ) -> Tensor:
        """wanted: as in `TransformerLayer`, of the last layer."""
        frozen = [number for number in self.layers if int(number) < self.frozen_layers]
        for number in frozen:
            x = frozen_output(self._through([number], x, padding, keys, wanted))
        for numbers, again in self.recompute.stretches(list(self.layers)[len(frozen) :]):
            if again:
                x = recomputed(self._through, numbers, x, padding, keys, wanted)
            else:
                x = self._through(numbers, x, padding, keys, wanted)
        return x if self.final_layernorm is None else self.final_layernorm(x)

    def _through(
        self, numbers: list[str], x: Tensor, padding: Tensor | None, keys: DropoutKeys | None, wanted: Tensor | None
    ) -> Tensor:
        last = list(self.layers)[-1]
        for number in numbers:
            x = self.layers[number](x, padding, keys, wanted if number == last else None)
        return x
