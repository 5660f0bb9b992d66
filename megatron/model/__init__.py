"""BERT-like encoders and their heads."""

from megatron.model.bert import BertEncoder, BertForPreTraining, BertForTask, LossSums

__all__ = ["BertEncoder", "BertForPreTraining", "BertForTask", "LossSums"]
