"""Where the time of a training step goes: what the profiler of torch records, in groups."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

# An operation belongs to the first group whose pattern its name has.
GROUPS = {
    "optimizer": r"adamw|optimizer",
    "gradient norm": r"vector_norm|gradient_norm",
    "cross-entropy": r"cross_?entropy|nll_loss|log_softmax",
    "attention: products": r"\bbmm\b|baddbmm",
    "attention: fused": r"attention",
    "attention: softmax": r"softmax",
    "dropout, residual, LayerNorm": r"layer_?norm|add_?norm",
    "GELU": r"gelu|bias_?activation",
    "dropout": r"dropout",
    "linear layers and head: products": r"\b(mm|addmm_?|matmul|linear)\b|linear",
    "embeddings and gather": r"embedding|index|gather|scatter",
    "copies": r"copy|\bto\b|\bcontiguous\b|clone|cat\b|stack",
    "sums": r"\bsum\b|add_rows",
    "additions and other element-wise work": r"\b(add|mul|div|sub|exp|fill|zero|neg|tanh|tanh_backward)_?\b",
}


def group_of(operation: str) -> str:
    """The group of an operation by its name in the profiler."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, operation, re.IGNORECASE)), "rest")


def milliseconds_by_group(step: Callable[[], object], steps: int = 3) -> dict[str, float]:
    """Milliseconds of a step by group, the largest first; "outside of operations" is what is in none (Python).

    The profiler itself takes time, so the sum is somewhat more than a step that nobody watches.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        whole = (time.perf_counter() - started) * 1e6
    microseconds: Counter[str] = Counter()
    for event in recorded.key_averages():
        microseconds[group_of(event.key)] += event.self_cpu_time_total
    microseconds["outside of operations"] = max(0.0, whole - microseconds.total())
    return {group: value / steps / 1e3 for group, value in microseconds.most_common()}
