"""AdamW over flat buffers, loss scale and learning-rate schedule."""
