"""Names for stretches of a program in a profiler's trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

STEP, LOADER, OPTIMIZER, COMMUNICATION = "step", "loader", "optimizer", "communication"


def span(kind: str, what: str = "") -> AbstractContextManager[object]:
    """A stretch of one of the kinds above, `what` in words. Next to nothing where no profiler runs."""
    if not torch.autograd._profiler_enabled():
        return nullcontext()
    return record_function(f"{kind}: {what}" if what else kind)
