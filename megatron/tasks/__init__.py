"""Tasks as values: reader, labels, head, metric and submission file; and the loop that fine-tunes on them."""
