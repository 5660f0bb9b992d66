"""What a rank keeps of its forward passes until their backwards, by formula, for this implementation.

It differs from the table of arXiv 2205.05198 in what is kept: dropout keeps no masks (they are computed again from
keys), attention without dropout keeps no probabilities, the head works on the masked positions alone. Tests hold the
formulas against what autograd really keeps; docs/planner.md explains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from megatron.model.parts import ModelPart, Recompute
from megatron.mpu.pipeline.plan import Kind
from megatron.planning.case import Case

_STATISTICS = 8  # bytes a row that a LayerNorm keeps: mean and inverse deviation, fp32


def _attention(case: Case, *, again: bool) -> int:
    """Between the query-key-value product and the output product of a layer. again: computed again in the backward."""
    heads = case.model.num_attention_heads // case.tensor
    width = case.model.hidden_size // case.tensor
    kept = 4 * case.element * case.tokens * width  # queries, keys, values; what enters the output product
    if again:
        return kept
    if case.model.attention_dropout == 0.0:  # fused: a sum for each query, fp32
        return kept + 4 * case.tokens * heads
    return kept + 2 * case.element * case.samples * heads * case.sequence**2  # before and after dropout


def _layer(case: Case, *, attention_again: bool) -> int:
    """One layer, its input included and its output not."""
    model = case.model
    stream = case.rows * (4 * case.element * model.hidden_size + 2 * _STATISTICS)
    inside = model.ffn_hidden_size // case.tensor * (1 if model.activation == "relu" else 2)
    return stream + _attention(case, again=attention_again) + case.element * case.tokens * inside


def _layers(case: Case, number: int) -> int:
    """The layers of a part, with what recomputation leaves of them."""
    recompute = Recompute.of(case.parallel)
    kept = 0
    for stretch, again in recompute.stretches([""] * number):
        if again:
            kept += case.element * case.rows * case.model.hidden_size
        else:
            kept += len(stretch) * _layer(case, attention_again=recompute.granularity == "selective")
    return kept


def _embeddings(case: Case) -> int:
    ids = 16 * case.tokens  # int64 tokens and types
    if case.tensor > 1:
        ids += 9 * case.tokens  # this rank's row of each token, and whether it has one
    if case.model.architecture == "bert":
        ids += case.rows * (case.element * case.model.hidden_size + _STATISTICS)
    return ids


def _heads(case: Case) -> int:
    model, masked = case.model, case.masked
    kept = masked * (4 * case.element * model.hidden_size + _STATISTICS + 17)
    kept += 4 * masked * case.vocabulary_rows  # probabilities, fp32
    if model.activation == "relu":
        kept -= case.element * masked * model.hidden_size
    if model.architecture == "megatron-bert":  # the input of the last LayerNorm
        kept += case.rows * (case.element * model.hidden_size + _STATISTICS)
    if not model.bert_no_binary_head:  # the pooler's input is a view of all hidden states
        kept += case.element * case.tokens * model.hidden_size
    return kept


def kept_by_part(case: Case, part: ModelPart) -> int:
    """Bytes kept of one micro-batch through a part: all that its backward needs, parameters not counted."""
    model, kept = case.model, _layers(case, part.stop - part.first)
    if model.hidden_dropout or model.attention_dropout:  # keys, one set for all layers
        kept += 8 * (case.rows + case.tokens * (model.num_attention_heads // case.tensor))
    if part.has_embeddings:
        kept += _embeddings(case)
    if part.has_heads:
        kept += _heads(case)
    else:
        kept += case.element * case.rows * model.hidden_size  # the output, whose backward is to come
    return kept


def _waiting(case: Case, part: ModelPart) -> int:
    """Zero-bubble: inputs and output gradients of the divided products, kept for the weights' backward."""
    model = case.model
    whole = 4 * model.hidden_size + (4 * model.hidden_size + 2 * model.ffn_hidden_size) // case.tensor
    return (part.stop - part.first) * case.element * case.tokens * whole


def activation_bytes(case: Case, stage: int) -> int:
    """Most bytes that a stage keeps for backwards at a time, following the plan of its schedule."""
    parts = case.parts(stage)
    kept = [kept_by_part(case, part) for part in parts]
    put_off = [_waiting(case, part) for part in parts]
    changes = []
    for action in case.timeline.plan[stage]:
        if action.kind is Kind.FORWARD:
            changes.append(kept[action.chunk])
        elif action.kind is Kind.BACKWARD:
            changes.append(-kept[action.chunk])
        elif action.kind is Kind.BACKWARD_INPUT:
            changes.append(put_off[action.chunk] - kept[action.chunk])
        else:
            changes.append(-put_off[action.chunk])
    return max(accumulate(changes), default=0)


def workspace_bytes(case: Case, stage: int) -> int:
    """Rough: the most that a stage needs for moments of a forward or backward, beside what it keeps."""
    model, element = case.model, case.element
    parts = case.parts(stage)
    heads = model.num_attention_heads // case.tensor
    width = (4 * model.hidden_size + 2 * model.ffn_hidden_size) // case.tensor + 2 * model.hidden_size
    layer = element * case.tokens * width
    if model.attention_dropout:
        layer += 3 * element * case.samples * heads * case.sequence**2
    needs = [layer + _recomputed(case, part) for part in parts]
    if any(part.has_heads for part in parts):  # logits, and their gradient in fp32 and as they were
        needs.append(case.masked * case.vocabulary_rows * (2 * element + 4))
    return max(needs) + element * _largest_parameter(case, parts)


def _recomputed(case: Case, part: ModelPart) -> int:
    """What recomputation brings back at a time."""
    recompute = Recompute.of(case.parallel)
    if recompute.granularity == "selective":
        return _attention(case, again=False) - _attention(case, again=True)
    stretches = recompute.stretches([""] * (part.stop - part.first))
    longest = max((len(stretch) for stretch, again in stretches if again), default=0)
    return longest * _layer(case, attention_again=False)


def _largest_parameter(case: Case, parts: Sequence[ModelPart]) -> int:
    """Elements of the largest gradient that exists before it is added to its bucket."""
    model = case.model
    of_layer = model.hidden_size * max(3 * model.hidden_size, model.ffn_hidden_size) // case.tensor
    if any(part.has_embeddings or part.has_heads for part in parts):
        return max(of_layer, case.vocabulary_rows * model.hidden_size)
    return of_layer
