"""The pipeline: plans as data, their time and communication, and the split of the layers."""
