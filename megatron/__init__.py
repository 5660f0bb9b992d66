"""A 3D-parallel engine for pre-training and fine-tuning BERT-like encoders, Chinese first."""

__version__ = "0.1.0"
