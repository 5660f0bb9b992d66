"""BERT-like encoders and their heads."""

from megatron.model.bert import UNCOUNTED, BertEncoder, BertForPreTraining, BertForPrompts, BertForTask, LossSums

__all__ = ["UNCOUNTED", "BertEncoder", "BertForPreTraining", "BertForPrompts", "BertForTask", "LossSums"]
