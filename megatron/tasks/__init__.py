"""Tasks as values: reader, labels, head, metric and submission file; the loop that fine-tunes on them; prediction.

    from megatron.tasks import load_predictor

    predictor = load_predictor("OUTPUT/best")
    predictor(["one text", ("one text", "another")])
"""

from __future__ import annotations

from megatron.tasks.predictor import Predictor, load_predictor

__all__ = ["Predictor", "load_predictor"]
