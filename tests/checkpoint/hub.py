"""Tiny Hugging Face folders for the tests of conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

transformers.utils.logging.disable_progress_bar()

TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"今天气很好人民日报的一是不了，。！？",
    "a",
    "A",
    "##b",
    "caf",
    "##e",
    "##é",
]

SHAPE = {
    "vocab_size": 40,  # more rows than TOKENS
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "max_position_embeddings": 21,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "megatron-bert": ("MegatronBert", {"layer_norm_eps": 1e-5}),
    "megatron-bert gelu_new, odd eps": ("MegatronBert", {"hidden_act": "gelu_new", "layer_norm_eps": 3.7e-7}),
    "bert": ("Bert", {}),
    "bert relu, odd eps, dropout": (
        "Bert",
        {"hidden_act": "relu", "layer_norm_eps": 0.013, "hidden_dropout_prob": 0.3},
    ),
    "bert, one token type": ("Bert", {"type_vocab_size": 1}),
    "ernie 1.0": ("Ernie", {"hidden_act": "relu", "layer_norm_eps": 1e-5, "max_position_embeddings": 33}),
    "ernie 3.0": ("Ernie", {"use_task_id": True, "task_type_vocab_size": 3, "type_vocab_size": 4}),
}


def hub_model(case: str, head: str = "ForPreTraining") -> transformers.PreTrainedModel:
    """A model with random weights, biases and LayerNorms included."""
    family, changes = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}{head}")(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def save_hub(model: transformers.PreTrainedModel, folder: Path, *, lower_case: bool = True, **options: Any) -> Path:
    """The model's folder with vocab.txt, as published folders are."""
    model.save_pretrained(folder, **options)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": lower_case, "tokenizer_class": "BertTokenizer"}), encoding="utf-8"
    )
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Set values in config.json; None removes one."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")


def assert_same_weights(folder: Path, other: transformers.PreTrainedModel) -> None:
    """The folder loads without a complaint as the class of `other`, with its tensors, bit for bit."""
    model, report = type(other).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    state, expected = model.state_dict(), other.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
