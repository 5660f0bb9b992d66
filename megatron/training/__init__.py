"""The training of an encoder: start-up, step, loop, evaluation, records."""
