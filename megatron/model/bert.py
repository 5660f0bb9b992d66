"""BERT: embeddings, encoder and the heads of pre-training and of tasks.

Mathematically the classes of transformers with the same weights: MegatronBertForPreTraining, BertForPreTraining and
ErnieForPreTraining.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron.config import ModelConfig
from megatron.model.parts import ModelPart, Recompute, whole
from megatron.model.transformer import Encoder, frozen_output, rows_of
from megatron.mpu.context import ParallelContext
from megatron.mpu.cross_entropy import vocab_parallel_cross_entropy
from megatron.mpu.layers import (
    Embedding,
    LayerNorm,
    Linear,
    VocabParallelBias,
    VocabParallelEmbedding,
    vocabulary_product,
)
from megatron.mpu.random import DropoutKeys, local_rows, site_key
from megatron.mpu.regions import gather_from_sequence_region, reduce_from_tensor_region
from megatron.mpu.sharding import shard_of
from megatron.ops.bias_activation import bias_activation
from megatron.ops.dropout import dropout
from megatron.ops.embedding import embedding_sum

# Sites outside the layers count as those of layer -1, which no layer has.
EMBEDDING_SITE, TASK_HEAD_SITE = site_key(-1, 0), site_key(-1, 1)
UNCOUNTED = -1
"""The label of a masked token that does not count."""


class Embeddings(nn.Module):
    """Sum of word, position, token-type and (ERNIE) task-type embeddings: ids [b, s] -> [s, b, h].

    Under sequence parallelism the result is this rank's [s / tp, b, h].
    """

    def __init__(self, config: ModelConfig, context: ParallelContext, *, tied: bool) -> None:
        """tied: whether the last of several pipeline stages holds the word table too."""
        super().__init__()
        h, std = config.hidden_size, config.init_method_std
        self.context = context
        self.word_embeddings = VocabParallelEmbedding(config.vocab_size, h, context, std=std, tied=tied)
        self.position_embeddings = Embedding(config.max_position_embeddings, h, context, std=std)
        self.token_type_embeddings = Embedding(config.type_vocab_size, h, context, std=std)
        self.task_type_embeddings = (
            Embedding(config.task_type_vocab_size, h, context, std=std) if config.task_type_vocab_size else None
        )
        self.layernorm = None
        if config.architecture == "bert":
            self.layernorm = LayerNorm(h, config.layernorm_epsilon, partial=context.sequence_parallel)
        self.probability = config.hidden_dropout

    def forward(self, tokens: Tensor, token_types: Tensor, keys: DropoutKeys | None) -> Tensor:
        rows = local_rows(tokens.shape[1], self.context)
        types = token_types.t()[rows]
        positions = torch.arange(rows.start, rows.stop, device=tokens.device)[:, None].expand_as(types)
        ids, tables = [types, positions], [self.token_type_embeddings.weight, self.position_embeddings.weight]
        if self.task_type_embeddings is not None:
            ids, tables = [*ids, torch.zeros_like(types)], [*tables, self.task_type_embeddings.weight]
        if self.context.tensor.size == 1:  # all in one pass
            x = embedding_sum([tokens.t(), *ids], [self.word_embeddings.weight, *tables])
        else:
            x = self.word_embeddings(tokens.t()) + embedding_sum(ids, tables)
        if self.layernorm is not None:
            x = self.layernorm(x)
        return dropout(x, self.probability, None if keys is None else keys.hidden, EMBEDDING_SITE)


class Pooler(nn.Module):
    """tanh of a linear layer on the hidden states of first tokens: [b, h] -> [b, h]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, std=config.init_method_std)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class LMHead(nn.Module):
    """Transform before the tied word table, and the bias of its logits: [n, h] -> [n, h]."""

    def __init__(self, config: ModelConfig, context: ParallelContext) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, std=config.init_method_std)
        self.layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.bias = VocabParallelBias(config.vocab_size, context).bias
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.layernorm(bias_activation(self.dense.product(x), self.dense.bias, self.activation))


def rows_at(positions: Tensor, samples: int, sequence: int) -> Tensor:
    """Rows of hidden states [s, b, h], seen as [s * b, h], at positions (row * s + column) of tokens [b, s]."""
    return positions % sequence * samples + positions // sequence


def first_rows(tokens: Tensor) -> Tensor:
    """Rows of hidden states, as in `rows_at`, of the first tokens of samples [b, s]."""
    return torch.arange(len(tokens), device=tokens.device)


def masked_logits(x: Tensor, lm_head: LMHead, word_table: nn.Parameter, context: ParallelContext) -> Tensor:
    """Logits of this rank's rows of the vocabulary: x [m, h] -> [m, V / tp]; rows of the table that are padding get
    -inf."""
    logits = vocabulary_product(lm_head(x), word_table, context) + lm_head.bias
    shard = shard_of(word_table)
    if shard.dim is not None and shard.size < word_table.shape[0]:
        padding = torch.arange(word_table.shape[0], device=x.device) >= shard.size
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


class WordTable(nn.Module):
    """The word table alone, on a last stage that does not hold the other embeddings; under the same global name."""

    def __init__(self, config: ModelConfig, context: ParallelContext) -> None:
        super().__init__()
        std = config.init_method_std
        self.word_embeddings = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, context, std=std, tied=True
        )


class BertEncoder(nn.Module):
    """A part of embeddings and encoder: what the heads of every model stand on."""

    def __init__(
        self, config: ModelConfig, context: ParallelContext, part: ModelPart | None, recompute: Recompute, *, tied: bool
    ) -> None:
        """part: None for the whole model. tied: whether a head uses the word table."""
        super().__init__()
        self.context = context
        self.part = part or whole(config)
        self.embeddings: Embeddings | WordTable | None = None
        if self.part.has_embeddings:
            self.embeddings = Embeddings(config, context, tied=tied and not self.part.has_heads)
        elif self.part.has_heads and tied:
            self.embeddings = WordTable(config, context)
        self.encoder = Encoder(config, context, self.part, recompute)

    def hidden_states(
        self,
        tokens: Tensor,
        token_types: Tensor,
        lengths: Tensor | None,
        keys: DropoutKeys | None,
        x: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """tokens, token_types: int64 [b, s]; lengths: int64 [b], tokens of each sample, or None without padding.

        x: what the part before gave, None for the first. Returns [s, b, h]; of a part before the last under sequence
        parallelism [s / tp, b, h]. wanted: what is read of the last part's, as in `rows_of`: [n, h].
        """
        if isinstance(self.embeddings, Embeddings):
            x = self.embeddings(tokens, token_types, keys)
            if self.part.frozen_layers is not None:
                x = frozen_output(x)
        assert x is not None
        if not self.part.has_heads:
            return self.encoder(x, lengths, keys)
        if self.context.sequence_parallel:
            return rows_of(gather_from_sequence_region(self.encoder(x, lengths, keys), self.context.tensor), wanted)
        return self.encoder(x, lengths, keys, wanted)

    def units(self) -> list[nn.Module]:
        """The modules that a forward calls one after another."""
        heads = [child for name, child in self.named_children() if name not in ("embeddings", "encoder")]
        called = [self.embeddings, *self.encoder.layers.values(), self.encoder.final_layernorm, *heads]
        return [unit for unit in called if unit is not None]

    @property
    def word_table(self) -> nn.Parameter:
        """This rank's rows of the word table. Only with embeddings or a head that uses it."""
        assert self.embeddings is not None
        return self.embeddings.word_embeddings.weight


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over a micro-batch, fp32 scalars: counts and one division belong to the step, not to the model.

    mlm, sop: sums of cross-entropies (natural logarithm); mlm_hits, sop_hits: numbers of right predictions.
    """

    mlm: Tensor
    mlm_hits: Tensor
    sop: Tensor
    sop_hits: Tensor

    def stacked(self) -> Tensor:
        """The four as one detached fp64 tensor: mlm, mlm_hits, sop, sop_hits."""
        return torch.stack([self.mlm, self.mlm_hits, self.sop, self.sop_hits]).detach().double()


class BertForPreTraining(BertEncoder):
    """The encoder with masked-language-model and sentence-order heads, or a part of it."""

    def __init__(
        self,
        config: ModelConfig,
        context: ParallelContext,
        part: ModelPart | None = None,
        recompute: Recompute = Recompute(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(config, context, part, recompute, tied=True)
        if not self.part.has_heads:
            return
        self.lm_head = LMHead(config, context)
        binary_head = not config.bert_no_binary_head
        self.pooler = Pooler(config) if binary_head else None
        self.binary_head = Linear(config.hidden_size, 2, std=config.init_method_std) if binary_head else None

    def forward(
        self,
        tokens: Tensor,
        token_types: Tensor,
        lengths: Tensor | None,
        masked_positions: Tensor,
        masked_labels: Tensor,
        sop_labels: Tensor,
        keys: DropoutKeys | None,
        x: Tensor | None = None,
    ) -> LossSums | Tensor:
        """Loss sums of a micro-batch. tokens, token_types, lengths: as in `hidden_states`; sop_labels: int64 [b].

        masked_positions: int64 [m], row * s + column of each token to predict; masked_labels: int64 [m], tokens or
        `UNCOUNTED`. The head is computed at these positions only. x: what the part before gave; a part before the last
        returns hidden states.
        """
        wanted = torch.cat([first_rows(tokens), rows_at(masked_positions, *tokens.shape)])
        x = self.hidden_states(tokens, token_types, lengths, keys, x, wanted)
        if not self.part.has_heads:
            return x
        first, masked = x.split([len(tokens), len(masked_positions)])
        logits = vocabulary_product(self.lm_head(masked), self.word_table, self.context)
        losses, hits = vocab_parallel_cross_entropy(logits, self.lm_head.bias, masked_labels, self.context.tensor)
        sop = sop_hits = torch.zeros((), device=x.device)
        if self.binary_head is not None:
            sop_logits = self.sop_logits(first).float()
            sop = nn.functional.cross_entropy(sop_logits, sop_labels, reduction="sum")
            sop_hits = (sop_logits.argmax(1) == sop_labels).sum().float()
        counted = masked_labels != UNCOUNTED
        mlm, mlm_hits = losses.masked_fill(~counted, 0.0).sum(), (hits & counted).sum().float()
        return LossSums(mlm=mlm, mlm_hits=mlm_hits, sop=sop, sop_hits=sop_hits)

    def mlm_logits(self, x: Tensor, positions: Tensor) -> Tensor:
        """Logits at `positions` (row * s + column) of hidden states x [s, b, h], as `masked_logits`: [m, V / tp]."""
        s, b, _ = x.shape
        return masked_logits(rows_of(x, rows_at(positions, b, s)), self.lm_head, self.word_table, self.context)

    def sop_logits(self, x: Tensor) -> Tensor:
        """Logits of "in order" and "swapped" from first tokens [b, h]: [b, 2]. Only with the binary head."""
        assert self.pooler is not None and self.binary_head is not None
        return self.binary_head(self.pooler(x))


class BertForTask(BertEncoder):
    """The encoder with a head for a downstream task, or a part of it."""

    def __init__(
        self,
        config: ModelConfig,
        context: ParallelContext,
        part: ModelPart | None = None,
        recompute: Recompute = Recompute(),  # noqa: B008 (frozen)
        *,
        num_outputs: int,
        per_token: bool = False,
        dropout: float,
    ) -> None:
        """num_outputs: logits of a sample, or with per_token of a token; dropout: probability before the head."""
        super().__init__(config, context, part, recompute, tied=False)
        self.probability = dropout
        self.pooler = Pooler(config) if self.part.has_heads and not per_token else None
        if self.part.has_heads:
            self.task_head = Linear(config.hidden_size, num_outputs, std=config.init_method_std)

    def forward(
        self,
        tokens: Tensor,
        token_types: Tensor,
        lengths: Tensor | None,
        keys: DropoutKeys | None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Logits, fp32 [b, num_outputs] or per token [b, s, num_outputs], or hidden states.

        As in `BertEncoder.hidden_states`.
        """
        x = self.hidden_states(
            tokens, token_types, lengths, keys, x, None if self.pooler is None else first_rows(tokens)
        )
        if not self.part.has_heads:
            return x
        if self.pooler is None:
            x = dropout(x, self.probability, None if keys is None else keys.whole, TASK_HEAD_SITE)
            return self.task_head(x).float().transpose(0, 1)
        pooled = dropout(self.pooler(x), self.probability, None if keys is None else keys.first, TASK_HEAD_SITE)
        return self.task_head(pooled).float()


class BertForPrompts(BertEncoder):
    """The encoder with the masked-language-model head, which says what may stand in a prompt's blanks, or a part.

    Scores as PET's (Schick and Schütze, 2021): the logits of a candidate's tokens at the blanks, summed. All
    candidates have as many tokens as there are blanks, so their softmax is that of the product of probabilities.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: ParallelContext,
        part: ModelPart | None = None,
        recompute: Recompute = Recompute(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(config, context, part, recompute, tied=True)
        if self.part.has_heads:
            self.lm_head = LMHead(config, context)

    def forward(
        self,
        tokens: Tensor,
        token_types: Tensor,
        lengths: Tensor | None,
        masks: Tensor,
        candidates: Tensor,
        keys: DropoutKeys | None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Scores of candidates, fp32 [b, c], or hidden states. As in `BertEncoder.hidden_states`.

        masks: int64 [b, m], columns of the blanks; candidates: int64 [b, c, m], tokens that may stand there.
        """
        wanted = (masks * len(masks) + first_rows(masks)[:, None]).reshape(-1)
        x = self.hidden_states(tokens, token_types, lengths, keys, x, wanted)
        if not self.part.has_heads:
            return x
        logits = masked_logits(x, self.lm_head, self.word_table, self.context).float()
        logits = logits.reshape(*masks.shape, -1)  # [b, m, V / tp]
        places = candidates.transpose(1, 2) - shard_of(self.word_table).start  # [b, m, c]
        own = (places >= 0) & (places < logits.shape[2])
        found = logits.gather(2, places.clamp(0, logits.shape[2] - 1)).masked_fill(~own, 0)
        return reduce_from_tensor_region(found.sum(1), self.context.tensor)
