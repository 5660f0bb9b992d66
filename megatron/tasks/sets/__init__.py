"""The tasks themselves, as values, with the readers of their files and their metrics."""
