"""What a rank keeps of its forward passes until their backwards, by formula, for this implementation.

It differs from the table of arXiv 2205.05198 in what is kept: dropout keeps no masks (they are computed again from
keys), attention keeps nothing of size s x s but with dropout on a GPU, the head works on the masked positions alone and
its gradient takes the place of the logits. The formulas are those of the compiled operations; tests hold them against
what autograd really keeps, docs/planner.md explains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from megatron.model.parts import ModelPart, Recompute
from megatron.mpu.pipeline.plan import Kind
from megatron.planning.case import Case

_STATISTICS = 8  # bytes a row that a LayerNorm keeps: mean and inverse deviation, fp32


def _layer(case: Case) -> int:
    """One layer, its input included and its output not."""
    kept = 0 if case.parallel.recompute_granularity == "selective" else _probabilities(case)
    return _before(case) + kept + _behind(case, case.rows, case.tokens)


def _probabilities(case: Case) -> int:
    """Of a layer's attention with dropout on a GPU the probabilities, before and after it; else none are kept."""
    if not case.on_gpu or case.model.attention_dropout == 0.0:
        return 0
    return 2 * case.element * case.tokens * case.sequence * (case.model.num_attention_heads // case.tensor)


def _before(case: Case) -> int:
    """Of a layer what is kept of all rows: its input, and queries, keys and values."""
    model = case.model
    stream = case.element * model.hidden_size
    if _norm_first(case):
        stream += case.element * model.hidden_size + _STATISTICS
    return case.rows * stream + case.element * case.tokens * (3 * model.hidden_size // case.tensor)


def _behind(case: Case, rows: int, tokens: int) -> int:
    """Of a layer what is kept behind the attention, of so many rows outside and tokens inside the divided products."""
    model = case.model
    if _norm_first(case):
        stream = 2 * case.element * model.hidden_size + _STATISTICS
    else:
        stream = 3 * case.element * model.hidden_size + 2 * _STATISTICS
    # What enters the output product; before and after the activation.
    inside = model.hidden_size // case.tensor + 2 * model.ffn_hidden_size // case.tensor
    return rows * stream + case.element * tokens * inside


def _norm_first(case: Case) -> bool:
    return case.model.architecture == "megatron-bert"


def _wanted(case: Case) -> int:
    """Rows that the heads read: first tokens and masked ones."""
    return case.samples + case.masked


def _layers(case: Case, part: ModelPart) -> int:
    """The layers of a part, with what recomputation leaves of them."""
    recompute = Recompute.of(case.parallel)
    numbers = [str(number) for number in range(part.first, part.stop)]
    kept = 0
    for stretch, again in recompute.stretches(numbers):
        if again:
            kept += case.element * case.rows * case.model.hidden_size
            continue
        kept += len(stretch) * _layer(case)
        if part.has_heads and not case.parallel.sequence_parallel and numbers[-1] in stretch:
            kept += _behind(case, _wanted(case), _wanted(case)) - _behind(case, case.rows, case.tokens)
            kept += 8 * _wanted(case) * bool(case.model.hidden_dropout)  # their keys
    return kept


def _embeddings(case: Case) -> int:
    model = case.model
    kept = 8 * case.tokens  # of each token its row of the word table, int64
    kept += 8 * case.rows * (3 if model.task_type_vocab_size else 2)  # of the other tables
    if model.architecture == "bert":
        kept += case.rows * (case.element * model.hidden_size + _STATISTICS)
    return kept


def _heads(case: Case) -> int:
    model, masked, wanted = case.model, case.masked, _wanted(case)
    # Labels, int64, and the sums of exponentials, fp32.
    kept = masked * (3 * case.element * model.hidden_size + _STATISTICS + 12)
    kept += case.element * masked * case.vocabulary_rows  # logits
    kept += wanted * (case.element * model.hidden_size + 8)  # the rows that are read, and which they are
    if _norm_first(case):  # the input of the last LayerNorm
        rows = case.rows if case.parallel.sequence_parallel else wanted
        kept += rows * (case.element * model.hidden_size + _STATISTICS)
    return kept


def kept_by_part(case: Case, part: ModelPart) -> int:
    """Bytes kept of one micro-batch through a part: all that its backward needs, parameters not counted."""
    model, kept = case.model, _layers(case, part)
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
    width = (4 * model.hidden_size + 2 * model.ffn_hidden_size) // case.tensor + 2 * model.hidden_size
    again = max(_recomputed_layers(case, part) for part in parts)
    need = element * case.tokens * width + again * _layer(case) + _probabilities(case)  # of moments, their gradients
    if case.parallel.recompute_granularity == "selective":
        need += _probabilities(case)
    if case.dtype == "fp32":  # products add to the gradients as they are computed
        return need
    return need + element * _largest_parameter(case, parts)


def _recomputed_layers(case: Case, part: ModelPart) -> int:
    """Layers that recomputation brings back at a time."""
    stretches = Recompute.of(case.parallel).stretches([""] * (part.stop - part.first))
    return max((len(stretch) for stretch, again in stretches if again), default=0)


def _largest_parameter(case: Case, parts: Sequence[ModelPart]) -> int:
    """Elements of the largest gradient that exists in 16 bits before it is added to its bucket."""
    model = case.model
    of_layer = model.hidden_size * max(3 * model.hidden_size, model.ffn_hidden_size) // case.tensor
    if any(part.has_embeddings or part.has_heads for part in parts):
        return max(of_layer, case.vocabulary_rows * model.hidden_size)
    return of_layer
