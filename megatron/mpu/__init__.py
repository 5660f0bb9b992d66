"""Model parallelism: the processes of a run, and layers whose tensors are divided among them."""
