"""BERT-like encoders and their heads."""

from megatron.model.bert import BertForPreTraining, BertForTask, LossSums

__all__ = ["BertForPreTraining", "BertForTask", "LossSums"]
