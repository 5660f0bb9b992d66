"""The training step as a user of the engine and as a user of transformers runs it, on the same weights and batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.optimizer.adamw import Optimizer
from megatron.training.graphs import Capture, MicroBatchGraph
from megatron.training.model import Pretraining, build, new_optimizer
from megatron.training.step import train_step

# A machine with a GPU may lack transformers and tokenizers: what needs them is imported where it is used.
if TYPE_CHECKING:
    from transformers import BertForPreTraining, MegatronBertForPreTraining

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0
MASK_TOKEN, FIRST_WORD = 103, 110  # ids below the first word are special
# Variants by number format: names of ours and of the peers that it is compared with.
OURS = {"fp32": "ours, fp32", "bf16": "ours, bf16"}
PEERS = {"fp32": ("peer, fp32",), "bf16": ("peer, bf16 autocast", "peer, bf16 weights")}
CPU = torch.device("cpu")
Step = Callable[[], float]  # one training step; returns its loss


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its batch. heads: of attention; vocabulary: rows of the word table; sequence: tokens of a sample."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    samples: int
    sequence: int
    architecture: Literal["megatron-bert", "bert"] = "megatron-bert"

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.samples * self.sequence

    def model(self, dropout: float) -> ModelConfig:
        """The model in our terms."""
        return ModelConfig(
            architecture=self.architecture,
            num_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            ffn_hidden_size=4 * self.hidden,
            max_position_embeddings=512,
            vocab_size=self.vocabulary,
            layernorm_epsilon=1e-12,
            hidden_dropout=dropout,
            attention_dropout=dropout,
        )

    def flops(self, masked: int) -> float:
        """Floating-point operations of a step's products, with `masked` tokens to predict."""
        from megatron.planning.case import Case
        from megatron.planning.estimate import step_flops

        case = Case(
            model=self.model(0.0),
            parallel=ParallelConfig(),
            layout=Layout(),
            on_gpu=False,
            dtype="fp32",
            samples=self.samples,
            sequence=self.sequence,
            masked=masked,
            micro_batches=1,
        )
        return step_flops(case)


def batch_of(shape: Shape) -> Batch:
    """Samples without padding, of which each token is masked with a probability of 15 %."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(FIRST_WORD, shape.vocabulary, (shape.samples, shape.sequence))
    masked = np.flatnonzero(draw.random(shape.tokens) < 0.15)
    labels = tokens.reshape(-1)[masked]
    tokens.reshape(-1)[masked] = MASK_TOKEN
    types = np.zeros_like(tokens)
    types[:, shape.sequence // 2 :] = 1
    return Batch(
        tokens=tokens,
        token_types=types,
        lengths=np.full(shape.samples, shape.sequence),
        masked_positions=masked,
        masked_labels=labels,
        sop_labels=draw.integers(0, 2, shape.samples),
        samples=np.arange(shape.samples),
    )


def peer_model(shape: Shape, dropout: float) -> MegatronBertForPreTraining | BertForPreTraining:
    """The class of transformers with the same initial weights at each call; BERT's with torch's attention kernels."""
    import transformers

    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.hidden,
        "max_position_embeddings": 512,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    torch.manual_seed(1)
    if shape.architecture == "bert":
        config = transformers.BertConfig(**sizes, attn_implementation="sdpa")
        return transformers.BertForPreTraining(config).train()
    return transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig(**sizes)).train()


def peer_step(
    shape: Shape,
    batch: Batch,
    *,
    dropout: float,
    weights: torch.dtype,
    autocast: bool,
    compiled: bool = False,
    exact_norm: bool = False,
    device: torch.device = CPU,
) -> Step:
    """The usual loop around the class of transformers, with fused AdamW.

    weights: their dtype; autocast: to bf16. exact_norm: the norm to clip by in fp64, to compare losses; torch's own in
    fp32 is a few parts in ten thousand off on a CPU.
    """
    model = peer_model(shape, dropout).to(device, weights)
    if compiled:
        model.compile()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    labels = torch.full((shape.tokens,), -100)
    labels[torch.from_numpy(batch.masked_positions)] = torch.from_numpy(batch.masked_labels)
    tokens = torch.from_numpy(batch.tokens)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.from_numpy(batch.token_types),
        "labels": labels.view_as(tokens),
        "next_sentence_label": torch.from_numpy(batch.sop_labels),
    }
    arguments = {name: x.to(device) for name, x in inputs.items()}

    def clip() -> None:
        if exact_norm:
            norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters]
            torch.nn.utils.clip_grads_with_norm_(parameters, CLIP, torch.linalg.vector_norm(torch.stack(norms)).float())
        else:
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = model(**arguments).loss
        loss.backward()
        clip()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A model of the engine with its optimizer, and the step of both."""

    run: Pretraining
    optimizer: Optimizer
    step: Step


def ours(
    shape: Shape,
    batch: Batch,
    *,
    dropout: float,
    precision: PrecisionConfig,
    weights: Mapping[str, torch.Tensor] | None = None,
    compiled: bool = False,
    device: torch.device = CPU,
    graph: Capture | None = None,
) -> Ours:
    """The step of `pretrain_bert.py` in one process. weights: those of a peer, under its names; graph: with
    --cuda-graphs, and what captures."""
    model, context, parallel = shape.model(dropout), ParallelContext.single(device.type), ParallelConfig()
    run = build(model, parallel, precision, 1, context)
    if weights is not None:
        _load(run, weights)
    optimizer_config = OptimizerConfig(lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_grad=CLIP)
    optimizer = new_optimizer(run.chunks, optimizer_config, precision, parallel, context)
    if compiled:
        for chunk in run.chunks:
            chunk.compile()

    recorded = None
    if graph is not None:
        masked = len(batch.masked_positions)
        recorded = MicroBatchGraph(
            run, samples=shape.samples, sequence=shape.sequence, masked=masked, seed=1, capture=graph
        )

    def step() -> float:
        totals = train_step(run, optimizer, [batch], LEARNING_RATE, seed=1, graph=recorded).totals
        return totals.mlm / totals.masked + totals.sop / totals.samples

    return Ours(run=run, optimizer=optimizer, step=step)


@torch.no_grad()
def _load(run: Pretraining, weights: Mapping[str, torch.Tensor]) -> None:
    from megatron.checkpoint.hub_names import merge, parameter_table

    (chunk,) = run.chunks
    table = parameter_table(run.config, "bert.")
    for name, parameter in chunk.named_parameters():
        parameter.copy_(merge([weights[their] for their in table[name][1]], run.config.num_attention_heads))


def new_ours(
    name: str, shape: Shape, batch: Batch, *, dropout: float, weights: Mapping[str, torch.Tensor] | None = None
) -> Ours:
    """Ours by its name, as in `new_step`. weights: as in `ours`."""
    plain = name.removesuffix(", compiled")
    precision = PrecisionConfig(bf16=plain == OURS["bf16"])
    return ours(shape, batch, dropout=dropout, precision=precision, weights=weights, compiled=plain != name)


def new_step(name: str, shape: Shape, batch: Batch, *, dropout: float, exact_norm: bool = False) -> Step:
    """The step of a variant by its name, of `OURS` or `PEERS`; ", compiled" at its end compiles the model.

    All have the same initial weights. exact_norm: as in `peer_step`; ours has no other.
    """
    plain = name.removesuffix(", compiled")
    if plain in OURS.values():
        weights = peer_model(shape, dropout).state_dict()
        return new_ours(name, shape, batch, dropout=dropout, weights=weights).step
    return peer_step(
        shape,
        batch,
        dropout=dropout,
        weights=torch.bfloat16 if plain == "peer, bf16 weights" else torch.float32,
        autocast=plain == "peer, bf16 autocast",
        compiled=plain != name,
        exact_norm=exact_norm,
    )
