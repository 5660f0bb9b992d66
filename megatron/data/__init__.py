"""From text to batches: indexed files, samples, masks. It knows ranks only as integers."""
