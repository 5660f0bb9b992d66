"""Kinds of tasks: how examples become inputs, losses and predictions."""
