"""Tasks as values: reader, labels, head, metric and submission file; the loop that fine-tunes on them; prediction."""
