"""BERT-like encoders and their heads."""

from megatron.model.bert import BertEncoder, BertForPreTraining, BertForPrompts, BertForTask, LossSums

__all__ = ["BertEncoder", "BertForPreTraining", "BertForPrompts", "BertForTask", "LossSums"]
