"""R-Drop (Liang et al., arXiv 2106.14448): what dropout does to a row must not change what the model says of it.

Every row goes through the model twice, with other dropout. The loss is the mean of the two losses, as in the authors'
code, plus alpha times the symmetric divergence of the two outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megatron.tasks.encode import IGNORED, TaskBatch

_NEVER = -1e9  # the logit of what cannot be


def divergence_sum(head: Literal["sequence", "token", "masked"], outputs: Tensor, batch: TaskBatch) -> Tensor:
    """The sum over rows, or labelled tokens, of (KL(P || Q) + KL(Q || P)) / 2 (nats), a scalar.

    batch: rows, then the same rows again; P, Q: the distributions that the task's loss takes the outputs (fp32) of a
    row as: over classes, candidates or the choices that are a row's inputs; for tokens with labels over the classes of
    each. For spans over the tokens, where they begin and where they end, on average.
    """
    if head != "token":
        first, second = outputs.reshape(len(batch.rows), -1).log_softmax(1).chunk(2)
        return _divergence(first, second)
    if batch.labels.shape == batch.tokens.shape:
        labelled = torch.from_numpy(batch.labels).to(outputs.device).chunk(2)[0] != IGNORED
        first, second = outputs.log_softmax(2).chunk(2)
        return _divergence(first[labelled], second[labelled])
    columns, lengths = torch.arange(outputs.shape[1]), torch.from_numpy(batch.lengths)
    padding = (columns >= lengths[:, None]).to(outputs.device)
    first, second = outputs.masked_fill(padding.unsqueeze(2), _NEVER).log_softmax(1).chunk(2)
    return _divergence(first, second) / outputs.shape[2]


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Half of KL(P || Q) + KL(Q || P), of logarithms, summed."""
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum()
