"""Options of fine-tuning: each against a plain torch loop that does the same, in several layouts, mistakes named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.checkpoint import find_checkpoint
from megatron.config import ParallelConfig
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from megatron.mpu.random import dropout_keys
from megatron.mpu.sharding import initialize
from megatron.tasks.batching import training_batches
from megatron.tasks.config import FinetuneConfig
from megatron.tasks.encode import IGNORED, Encoded
from megatron.tasks.finetune import finetune
from megatron.tasks.inputs import read_inputs
from megatron.tasks.kinds.classification import own_columns
from megatron.tasks.pretrained import load_weights, open_pretrained
from megatron.tasks.sets.clue import OWN_TEXTS
from megatron.tasks.table import find_task
from megatron.tasks.tuning.class_weights import class_weights, weighted_loss
from megatron.tasks.tuning.layerwise import rate_factors
from megatron.tasks.tuning.regularization import divergence_sum
from tests.ranks import run_ranks
from tests.tasks.tiny import changed, write_checkpoint
from tests.tasks.tuning.conftest import BATCH, EPOCHS, SEED, steps_of

SINGLE = ParallelContext.single()


Loss = Callable[[Callable[[int], Tensor], Tensor], Tensor]


def cross_entropy(call: Callable[[int], Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(call(0), labels)


def plain_torch_loop(
    config: FinetuneConfig,
    loss_of: Loss = cross_entropy,
    rate_of: Callable[[str], float] = lambda name: 1.0,
    fgm: float = 0.0,
    dropout: float = 0.0,
) -> list[tuple[float, float]]:
    """Losses and gradient norms of the steps.

    loss_of: from the model, called with 0 or 1 for a draw of dropout, and the labels.
    """
    file = Path(config.task.data_dir) / "train.tsv"
    task = own_columns(OWN_TEXTS, file, config.task)
    pretrained = open_pretrained(Path(config.source.pretrained_checkpoint), Path("none"), SINGLE)
    encoded = read_inputs(task, (file,), "train", pretrained.tokenizer, 32).encoded
    shape = dataclasses.replace(pretrained.model, hidden_dropout=dropout, attention_dropout=dropout)
    model = BertForTask(shape, SINGLE, num_outputs=2, dropout=dropout)
    initialize(model, SEED)
    load_weights([model], pretrained, fine_tuned=False, context=SINGLE)
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rate_of(name) > 0)
        if rate_of(name) > 0:
            decay = 0.1 if parameter.dim() > 1 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "factor": rate_of(name)})
    trained = [group["params"][0] for group in groups]
    optimizer = torch.optim.AdamW(groups, eps=1e-8)
    total, consumed = encoded.num_rows * EPOCHS, 0
    warmup = int(0.1 * total)
    found = []
    for epoch in range(EPOCHS):
        for rows in training_batches(encoded.lengths, batch_size=BATCH, seed=SEED, epoch=epoch):
            batch = encoded.batch(rows)
            arrays = (batch.tokens, batch.token_types, batch.lengths, batch.labels)
            tokens, types, lengths, labels = map(torch.from_numpy, arrays)

            def call(draw: int, inputs: Any = (tokens, types, lengths), rows: Any = rows, epoch: int = epoch) -> Tensor:
                samples = torch.from_numpy(rows + (epoch + draw * EPOCHS) * encoded.num_rows)
                width = inputs[0].shape[1]
                keys = dropout_keys(SEED, samples, sequence=width, heads=shape.num_attention_heads, context=SINGLE)
                return model(*inputs, keys if dropout else None)

            optimizer.zero_grad()
            loss = loss_of(call, labels)
            loss.backward()
            if fgm:
                words = model.word_table
                kept = words.data.clone()
                words.data += fgm * words.grad / words.grad.norm()  # type: ignore[operator, union-attr]
                loss_of(call, labels).backward()
                words.data = kept
            norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
            share = consumed / warmup if consumed < warmup else (total - consumed) / (total - warmup)
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * share * group["factor"]
            optimizer.step()
            consumed += len(rows)
            found.append((loss.item(), norm.item()))
    return found


def assert_equal_steps(config: FinetuneConfig, expected: list[tuple[float, float]]) -> None:
    """Run, and compare the losses and norms of the steps."""
    finetune(config, SINGLE)
    steps = steps_of(Path(config.source.output_dir))
    assert [step["loss"] for step in steps] == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx([norm for _, norm in expected], rel=1e-3)


def without_dropout(config: FinetuneConfig, **values: Any) -> FinetuneConfig:
    return changed(config, "tuning", hidden_dropout=0.0, attention_dropout=0.0, **values)


@pytest.mark.parametrize(
    ("flag", "weights"), [("0.5,2", [0.5, 2.0]), ("balanced", [31 / 24, 31 / 38])], ids=["given", "balanced"]
)
def test_class_weights_are_those_of_torch(config: FinetuneConfig, flag: str, weights: list[float]) -> None:
    def weighted(call: Callable[[int], Tensor], labels: Tensor) -> Tensor:
        return F.cross_entropy(call(0), labels, weight=torch.tensor(weights), reduction="mean")

    # accumulated over micro-batches whose sums of weights differ
    assert_equal_steps(
        without_dropout(config, class_weights=flag, micro_batch_size=4), plain_torch_loop(config, weighted)
    )


def test_balanced_weights_are_those_of_scikit_learn(data: Path, config: FinetuneConfig) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task = dataclasses.replace(find_task("tnews"))
    labels = np.random.default_rng(3).integers(0, 9, 200) + 2  # of 15 classes some do not occur
    found = class_weights("balanced", task, encoded_of(labels)).numpy()
    occurring = np.unique(labels)
    expected = compute_class_weight("balanced", classes=occurring, y=labels)
    np.testing.assert_allclose(found[occurring], expected, rtol=1e-6)
    assert found.shape == (15,) and np.isfinite(found).all()


def encoded_of(labels: np.ndarray, *, row_inputs: int = 1, token_labels: bool = False) -> Encoded:
    """Inputs of 3 tokens with these labels."""
    inputs = len(labels) // 3 if token_labels else len(labels) * row_inputs
    return Encoded(
        tokens=np.ones(3 * inputs, dtype=np.int32),
        offsets=np.arange(inputs + 1) * 3,
        first_lengths=np.full(inputs, 3),
        labels=labels,
        pad_id=0,
        truncated=0,
        row_inputs=row_inputs,
        token_labels=token_labels,
    )


def test_weights_of_tokens() -> None:
    """Tagging: only labelled tokens count, each by its class, as in torch."""
    labels = np.array([IGNORED, 0, 1, IGNORED, 1, 1])
    encoded = encoded_of(labels, token_labels=True)
    task = dataclasses.replace(find_task("afqmc"))
    weights = class_weights("balanced", task, encoded)
    torch.testing.assert_close(weights, torch.tensor([4 / 2, 4 / 6]))
    outputs = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
    batch = encoded.batch(np.arange(2))
    mean = F.cross_entropy(outputs.view(6, 2), torch.from_numpy(labels), weight=weights, ignore_index=IGNORED)
    torch.testing.assert_close(weighted_loss(outputs, batch, weights) / (2 + 3 * 4 / 6), mean)


@pytest.mark.parametrize("weights", [None, "0.5,2"])
def test_r_drop_goes_twice_through_the_model(config: FinetuneConfig, weights: str | None) -> None:
    of_classes = None if weights is None else torch.tensor([0.5, 2.0])

    def r_drop(call: Callable[[int], Tensor], labels: Tensor) -> Tensor:
        one, two = call(0), call(1)
        p, q = one.log_softmax(1), two.log_softmax(1)
        divergence = (
            F.kl_div(p, q.exp(), reduction="batchmean") + F.kl_div(q, p.exp(), reduction="batchmean")
        ) / 2
        assert divergence > 0
        losses = [F.cross_entropy(outputs, labels, weight=of_classes) for outputs in (one, two)]
        return sum(losses, torch.zeros(())) / 2 + 0.7 * divergence

    config = changed(
        config, "tuning", r_drop=0.7, class_weights=weights, hidden_dropout=0.2, attention_dropout=0.2
    )
    config = changed(config, "tuning", micro_batch_size=4)
    assert_equal_steps(config, plain_torch_loop(config, r_drop, dropout=0.2))


def kl(p: Tensor, q: Tensor) -> float:
    """Of probabilities."""
    return float(sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("kind", ["choices", "tokens", "spans"])
def test_r_drop_compares_the_distributions_that_the_loss_of_a_kind_sees(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = np.tile(np.arange(2), 2)
    if kind == "choices":  # a softmax over the 3 inputs of a row
        batch = encoded_of(np.array([1, 2]), row_inputs=3).batch(rows)
        outputs = torch.randn(12, 1, generator=generator)
        parts = outputs.view(4, 3)
        pairs = [(parts[row], parts[row + 2]) for row in range(2)]
        share = 1.0
    elif kind == "tokens":
        batch = encoded_of(np.array([IGNORED, 0, 1, IGNORED, IGNORED, 1]), token_labels=True).batch(rows)
        outputs = torch.randn(4, 3, 5, generator=generator)
        pairs = [(outputs[row, column], outputs[row + 2, column]) for row, column in ((0, 1), (0, 2), (1, 2))]
        share = 1.0
    else:  # over the tokens, padding left out
        encoded = dataclasses.replace(encoded_of(np.zeros((2, 2), dtype=np.int64)), offsets=np.array([0, 2, 6]))
        batch = encoded.batch(rows)
        outputs = torch.randn(4, 4, 2, generator=generator)
        pairs = [(outputs[r, :n, end], outputs[r + 2, :n, end]) for r, n in ((0, 2), (1, 4)) for end in (0, 1)]
        share = 0.5
    expected = sum(kl(a.softmax(0), b.softmax(0)) + kl(b.softmax(0), a.softmax(0)) for a, b in pairs) / 2 * share
    head = "sequence" if kind == "choices" else "token"
    assert divergence_sum(head, outputs, batch).item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_fgm_adds_the_gradient_at_moved_word_embeddings(config: FinetuneConfig) -> None:
    assert_equal_steps(without_dropout(config, fgm=1.5, micro_batch_size=4), plain_torch_loop(config, fgm=1.5))


def test_layerwise_rates_are_groups_of_torch(config: FinetuneConfig) -> None:
    def rate_of(name: str) -> float:
        for beginning, factor in {"embeddings": 0.125, "encoder.layers.0.": 0.25, "encoder.": 0.5}.items():
            if name.startswith(beginning):
                return factor
        return 1.0

    assert_equal_steps(without_dropout(config, layerwise_lr_decay=0.5), plain_torch_loop(config, rate_of=rate_of))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_layers_stay_and_do_not_count(config: FinetuneConfig, checkpoint: Path, frozen: int) -> None:
    from safetensors.torch import load_file

    names = ("embeddings.", *(f"encoder.layers.{layer}." for layer in range(frozen)))
    names += ("encoder.final_layernorm.",) if frozen == 2 else ()
    config = without_dropout(config, freeze_layers=frozen)
    assert_equal_steps(config, plain_torch_loop(config, rate_of=lambda name: float(not name.startswith(names))))
    best = find_checkpoint(Path(config.source.output_dir) / "best", context=SINGLE)
    first = find_checkpoint(checkpoint, context=SINGLE)
    assert best is not None and first is not None
    before, after = (load_file(folder / "model-00000.safetensors") for folder in (first, best))
    for name in after.keys() & before.keys():
        assert torch.equal(before[name], after[name]) == name.startswith(names), name


def test_rates_by_depth() -> None:
    factor = rate_factors(12, frozen_layers=3, decay=0.8)
    assert factor("task_head.weight") == factor("pooler.dense.bias") == factor("lm_head.dense.weight") == 1
    assert factor("encoder.layers.11.mlp.dense_h_to_4h.weight") == factor("encoder.final_layernorm.bias") == 0.8
    assert factor("encoder.layers.3.attention.dense.bias") == pytest.approx(0.8**9)
    assert factor("encoder.layers.2.attention.dense.bias") == factor("embeddings.layernorm.weight") == 0
    factor = rate_factors(12, frozen_layers=None, decay=0.8)
    assert factor("embeddings.word_embeddings.weight") == pytest.approx(0.8**13)


# ---- Layouts -------------------------------------------------------------------------------------------------------

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
ZERO = {"use_distributed_optimizer": True}
ALL: dict[str, Any] = {"class_weights": "balanced", "r_drop": 0.5, "fgm": 1.0, "layerwise_lr_decay": 0.7}
LAYOUTS: dict[str, tuple[str, dict[str, Any], int, dict[str, Any]]] = {
    "all, data 2 in micro-batches": ("megatron-bert", {**ALL, "micro_batch_size": 4}, 2, {}),
    "all, tensor 2": ("megatron-bert", ALL, 1, {TP: 2}),
    "all, pipeline 2": ("megatron-bert", {**ALL, "micro_batch_size": 4}, 1, {PP: 2}),
    "all, ZeRO data 2, sequence 2": ("bert", ALL, 2, {TP: 2, "sequence_parallel": True, **ZERO}),
    "frozen 1, ZeRO data 2": ("bert", {"freeze_layers": 1, "layerwise_lr_decay": 0.7}, 2, ZERO),
    "frozen 1, tensor 2, recomputed": ("bert", {"freeze_layers": 1}, 1, {TP: 2, "recompute_granularity": "full"}),
    "frozen 1, zero-bubble": (
        "bert",
        {"freeze_layers": 1, "micro_batch_size": 4},
        1,
        {PP: 2, "pipeline_schedule": "zero-bubble"},
    ),
    "frozen 2, pipeline 2": ("megatron-bert", {"freeze_layers": 2, "micro_batch_size": 4}, 1, {PP: 2}),
}


def run(context: ParallelContext, config: FinetuneConfig) -> None:
    finetune(config, dataclasses.replace(context, sequence_parallel=config.parallel.sequence_parallel))


@pytest.fixture(scope="module")
def alone() -> dict[str, list[dict[str, Any]]]:
    """The steps of one process, by architecture and options."""
    return {}


@pytest.mark.parametrize("name", LAYOUTS)
def test_options_do_not_depend_on_the_layout(
    name: str, config: FinetuneConfig, alone: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    architecture, values, size, options = LAYOUTS[name]
    folder = write_checkpoint(tmp_path / "checkpoint", architecture=architecture)
    config = changed(config, "source", pretrained_checkpoint=str(folder), output_dir=str(tmp_path / "one"))
    one = changed(config, "tuning", **{**values, "micro_batch_size": None})
    key = f"{architecture} {one.tuning}"
    if key not in alone:
        finetune(one, SINGLE)
        alone[key] = steps_of(tmp_path / "one")
    config = changed(changed(config, "tuning", **values), "source", output_dir=str(tmp_path / "two"))
    config = dataclasses.replace(config, parallel=ParallelConfig(**options))
    layout = Layout(
        pipeline=config.parallel.pipeline_model_parallel_size,
        data=size,
        tensor=config.parallel.tensor_model_parallel_size,
    )
    assert run_ranks(layout, run, config) == [None] * layout.world_size
    for a, b in zip(alone[key], steps_of(tmp_path / "two"), strict=True):
        for figure in ("loss", "accuracy", "grad_norm"):
            assert b[figure] == pytest.approx(a[figure], rel=5e-5), (figure, a["step"])
    written = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert written["layout"]["processes"] == layout.world_size


# ---- What is kept and said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": math.nan}, "--lr must be positive and finite, not nan"),
        ({"lr": math.inf}, "--lr must be positive and finite, not inf"),
        ({"early_stopping": 0}, "--early-stopping must be positive, not 0"),
        ({"keep_last_checkpoints": 0}, "--keep-last-checkpoints must be positive, not 0"),
        ({"class_weights": "1,x"}, "--class-weights must be positive numbers 1,2,0.5 or balanced, not 1,x"),
        ({"class_weights": "1,-2"}, "--class-weights must be positive numbers"),
        ({"class_weights": "1,nan"}, "--class-weights must be positive numbers"),
        ({"class_weights": "1,2,3"}, "--class-weights 1,2,3 are 3 for the 2 classes of classification: bad, good"),
        ({"freeze_layers": -1}, "--freeze-layers must not be negative"),
        ({"freeze_layers": 3}, "--freeze-layers 3: the model has 2 layers"),
        ({"freeze_layers": 0, "fgm": 1.0}, "--fgm needs the gradient of the embeddings, so it excludes"),
        ({"layerwise_lr_decay": 1.5}, "--layerwise-lr-decay must be above 0 and at most 1, not 1.5"),
        ({"r_drop": float("nan")}, "--r-drop must not be negative, and finite"),
        ({"r_drop": 1.0, "hidden_dropout": 0.0, "attention_dropout": 0.0}, "--r-drop compares two dropouts"),
    ],
)
def test_mistakes_are_named(config: FinetuneConfig, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        finetune(changed(config, "tuning", **values), SINGLE)
    assert message in str(error.value)


@pytest.mark.parametrize("encoded", [encoded_of(np.array([1]), row_inputs=2), encoded_of(np.array([[1, 2]]))])
def test_class_weights_need_classes(encoded: Encoded) -> None:
    with pytest.raises(UserError, match="--class-weights is for classification and tagging"):
        class_weights("balanced", find_task("tnews"), encoded)
