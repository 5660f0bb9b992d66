"""Our model and the Hugging Face model of the same weights, and batches for both."""

from __future__ import annotations

import dataclasses

import torch
import transformers

from megatron.checkpoint.huggingface import parameter_table
from megatron.config import ModelConfig
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize

BERT = ModelConfig(
    architecture="bert",
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    ffn_hidden_size=48,
    max_position_embeddings=24,
    vocab_size=67,
    layernorm_epsilon=1e-9,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    init_method_std=0.05,
)
MEGATRON = dataclasses.replace(BERT, architecture="megatron-bert", layernorm_epsilon=1e-5)
SHAPES = {
    "bert": BERT,
    "bert gelu_new": dataclasses.replace(BERT, activation="gelu_new"),
    "ernie 1.0 (relu)": dataclasses.replace(BERT, activation="relu", max_position_embeddings=29),
    "ernie 3.0 (task types)": dataclasses.replace(BERT, task_type_vocab_size=3, type_vocab_size=4),
    "megatron-bert": MEGATRON,
    "megatron-bert gelu_new": dataclasses.replace(MEGATRON, activation="gelu_new"),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    ours: BertForPreTraining
    theirs: transformers.PreTrainedModel
    names: dict[str, tuple[str, ...]]  # our parameter -> theirs (three for query, key, value)
    heads: int

    def merged(self, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Their tensors of one of our names, in our order of rows."""
        parts = [tensors[their] for their in self.names[name]]
        if len(parts) == 1:
            return parts[0]
        rows = [part.reshape(self.heads, -1, *part.shape[1:]) for part in parts]
        return torch.cat(rows, dim=1).reshape(-1, *parts[0].shape[1:])


def make_pair(config: ModelConfig) -> Pair:
    """Random weights from our initialisation, biases and LayerNorms made random too, copied to their class."""
    ours = BertForPreTraining(config, ParallelContext.single())
    initialize(ours, seed=11)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    common = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layernorm_epsilon,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if config.task_type_vocab_size:
        theirs = transformers.ErnieForPreTraining(
            transformers.ErnieConfig(**common, use_task_id=True, task_type_vocab_size=config.task_type_vocab_size)
        )
    elif config.architecture == "bert":
        theirs = transformers.BertForPreTraining(transformers.BertConfig(**common))
    else:
        theirs = transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig(**common))
    names = {name: row[1] for name, row in parameter_table(config, f"{theirs.base_model_prefix}.").items()}
    pair = Pair(ours=ours, theirs=theirs, names=names, heads=config.num_attention_heads)
    their_parameters = dict(theirs.named_parameters())
    assert {their for row in names.values() for their in row} == set(their_parameters)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parts = [parameter]
            if len(names[name]) == 3:
                rows = parameter.reshape(pair.heads, 3, -1, *parameter.shape[1:])
                parts = [rows[:, i].reshape(-1, *parameter.shape[1:]) for i in range(3)]
            for part, their in zip(parts, names[name], strict=True):
                their_parameters[their].copy_(part)
    return pair


def batch_of(step: int, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Four samples of unequal length with masks at random places. Keys are the arguments of our forward."""
    generator = torch.Generator().manual_seed(step)
    b, s = 4, 20
    lengths = torch.randint(8, s + 1, (b,), generator=generator)
    inside = torch.arange(s) < lengths[:, None]
    tokens = torch.randint(4, config.vocab_size, (b, s), generator=generator) * inside
    masked = (torch.rand(b, s, generator=generator) < 0.2) & inside
    masked[:, 1] = True
    positions = masked.flatten().nonzero().flatten()
    return {
        "tokens": tokens,
        "token_types": ((torch.arange(s) > lengths[:, None] // 2) & inside).long(),
        "lengths": lengths,
        "masked_positions": positions,
        "masked_labels": torch.randint(4, config.vocab_size, positions.shape, generator=generator),
        "sop_labels": torch.randint(0, 2, (b,), generator=generator),
    }


def our_loss(model: BertForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    sums = model(**batch, keys=None)
    return sums.mlm / len(batch["masked_labels"]) + sums.sop / len(batch["sop_labels"])


def their_loss(model: transformers.PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = torch.full(batch["tokens"].shape, -100)
    labels.view(-1)[batch["masked_positions"]] = batch["masked_labels"]
    return model(
        input_ids=batch["tokens"],
        token_type_ids=batch["token_types"],
        attention_mask=(torch.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]).long(),
        labels=labels,
        next_sentence_label=batch["sop_labels"],
    ).loss
