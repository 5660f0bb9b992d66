"""Conversion from and to Hugging Face folders, against transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from megatron.checkpoint import find_checkpoint, json_bytes, load_tensors, read_config, save_checkpoint
from megatron.checkpoint.hub_names import merge, parameter_table, split
from megatron.checkpoint.huggingface import from_huggingface, read_huggingface, to_huggingface
from megatron.config import ModelConfig, model_from_dict, to_dict
from megatron.errors import UserError
from megatron.model import BertForPreTraining, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces, whole_piece
from tests.checkpoint.hub import CASES, TOKENS, assert_same_weights, hub_model, save_hub

SINGLE = ParallelContext.single()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def our_model(checkpoint: Path) -> BertForPreTraining:
    """The model of a checkpoint, loaded as training does."""
    model = BertForPreTraining(model_from_dict(read_config(checkpoint)["model"]), SINGLE)
    load_tensors(checkpoint, "model", parameter_pieces(model.named_parameters()), context=SINGLE)
    return model


def save_ours(model: torch.nn.Module, config: ModelConfig, folder: Path, **more: Any) -> Path:
    described = {"model": to_dict(config), "data": {"tokenizer_type": "BertWordPieceCase"}, **more}
    files = {
        "config.json": json_bytes(described),
        "train_state.json": json_bytes({"step": 1200, "consumed_samples": 38400}),
        "vocab.txt": "".join(f"{token}\n" for token in TOKENS).encode(),
    }
    parameters = parameter_pieces(model.named_parameters())
    return save_checkpoint(folder, 1200, model=parameters, optimizer=[], files=files, context=SINGLE)


def inputs(model: transformers.PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, token types, lengths and the mask of real tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.config.vocab_size, (3, 19), generator=generator)
    types = torch.randint(model.config.type_vocab_size, (3, 19), generator=generator)
    lengths = torch.tensor([19, 5, 11])
    return tokens, types, lengths, torch.arange(19) < lengths[:, None]


@torch.no_grad()
def assert_same_logits(ours: BertForPreTraining, theirs: transformers.PreTrainedModel) -> None:
    tokens, types, lengths, real = inputs(theirs)
    x = ours.hidden_states(tokens, types, lengths, None)
    output = theirs(input_ids=tokens, token_type_ids=types, attention_mask=real.long())
    mlm = ours.mlm_logits(x, real.flatten().nonzero().flatten())
    torch.testing.assert_close(mlm, output.prediction_logits[real], rtol=1e-5, atol=1e-5)
    if ours.binary_head is not None:
        torch.testing.assert_close(ours.sop_logits(x[0]), output.seq_relationship_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_bit_equal_and_logits_agree_on_the_way(tmp_path: Path, case: str) -> None:
    theirs = hub_model(case)
    notices = from_huggingface(save_hub(theirs, tmp_path / "in"), tmp_path / "save")
    assert notices == ()
    checkpoint = find_checkpoint(tmp_path / "save", context=SINGLE)
    assert checkpoint is not None
    assert checkpoint.name == "iter_0000000"
    assert_same_logits(our_model(checkpoint), theirs)
    assert to_huggingface(tmp_path / "save", tmp_path / "out") == ()
    exported = load_file(tmp_path / "out" / "model.safetensors")
    imported = load_file(tmp_path / "in" / "model.safetensors")
    if case == "ernie 1.0":  # without task types Ernie is Bert
        imported = {name.replace("ernie.", "bert."): tensor for name, tensor in imported.items()}
    else:
        assert_same_weights(tmp_path / "out", theirs)
        again = transformers.AutoConfig.from_pretrained(tmp_path / "out")
        names = (
            "architectures model_type hidden_act layer_norm_eps vocab_size hidden_size num_hidden_layers "
            "num_attention_heads intermediate_size max_position_embeddings type_vocab_size hidden_dropout_prob "
            "attention_probs_dropout_prob initializer_range pad_token_id tie_word_embeddings"
        ).split()
        assert {name: getattr(again, name) for name in names} == {name: getattr(theirs.config, name) for name in names}
    assert set(exported) == set(imported)
    assert all(torch.equal(exported[name], imported[name]) for name in imported)


@pytest.mark.parametrize("architecture", ["megatron-bert", "bert"])
@pytest.mark.parametrize("binary_head", [True, False])
def test_an_exported_model_of_ours_computes_the_same(tmp_path: Path, architecture: Any, binary_head: bool) -> None:
    config = ModelConfig(
        architecture=architecture, num_layers=2, hidden_size=24, num_attention_heads=3, ffn_hidden_size=40,
        max_position_embeddings=20, vocab_size=40, bert_no_binary_head=not binary_head, init_method_std=0.3,
        activation="gelu_new",
    )  # fmt: skip
    ours = BertForPreTraining(config, SINGLE)
    initialize(ours, 1)
    save_ours(ours, config, tmp_path / "save")
    notices = to_huggingface(tmp_path / "save", tmp_path / "out")
    if binary_head:
        assert_same_logits(ours, transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval())
        assert notices == ()
        return
    assert "pooler, binary_head" in notices[0]
    theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs).__name__ in theirs.config.architectures
    tokens, types, lengths, real = inputs(theirs)
    with torch.no_grad():
        logits = theirs.eval()(input_ids=tokens, token_type_ids=types, attention_mask=real.long()).logits[real]
        x = ours.hidden_states(tokens, types, lengths, None)
        mlm = ours.mlm_logits(x, real.flatten().nonzero().flatten())
    torch.testing.assert_close(mlm, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["megatron-bert", "bert"])
def test_a_fine_tuned_classifier_is_exported_with_its_labels(tmp_path: Path, architecture: Any) -> None:
    config = ModelConfig(
        architecture=architecture, num_layers=1, hidden_size=24, num_attention_heads=3, ffn_hidden_size=40,
        max_position_embeddings=20, vocab_size=40, init_method_std=0.3,
    )  # fmt: skip
    ours = BertForTask(config, SINGLE, num_outputs=3, dropout=0.0)
    initialize(ours, 1)
    task = {"name": "ocnli", "head": "classification", "labels": ["neutral", "entailment", "contradiction"]}
    save_ours(ours, config, tmp_path / "save", task=task)
    assert to_huggingface(tmp_path / "save", tmp_path / "out") == ()
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.id2label == {0: "neutral", 1: "entailment", 2: "contradiction"}
    tokens, types, lengths, real = inputs(theirs)
    with torch.no_grad():
        logits = theirs.eval()(input_ids=tokens, token_type_ids=types, attention_mask=real.long()).logits
        torch.testing.assert_close(ours(tokens, types, lengths, None), logits, rtol=1e-5, atol=1e-5)


def test_query_key_value_rows_are_ordered_by_head() -> None:
    heads, size = 3, 2
    query, key, value = (torch.arange(heads * size)[:, None] + 100 * part for part in range(3))
    merged = merge([query, key, value], heads)
    assert merged.flatten().tolist() == [0, 1, 100, 101, 200, 201, 2, 3, 102, 103, 202, 203, 4, 5, 104, 105, 204, 205]
    for part, original in zip(split(merged, heads, 3), (query, key, value), strict=True):
        assert torch.equal(part, original)
    bias = torch.randn(6)
    assert torch.equal(split(merge([bias, bias + 1, bias + 2], heads), heads, 3)[1], bias + 1)


@pytest.mark.parametrize("case", ["megatron-bert", "bert", "ernie 3.0"])
def test_the_table_has_exactly_the_parameters_of_both_sides(case: str) -> None:
    theirs = hub_model(case)
    config = theirs.config
    model = ModelConfig(
        architecture="megatron-bert" if case == "megatron-bert" else "bert", num_layers=2, hidden_size=24,
        num_attention_heads=3, ffn_hidden_size=44, max_position_embeddings=21, vocab_size=40,
        type_vocab_size=config.type_vocab_size, task_type_vocab_size=3 if case == "ernie 3.0" else 0,
    )  # fmt: skip
    table = parameter_table(model, f"{theirs.base_model_prefix}.")
    ours = {name: tuple(p.shape) for name, p in BertForPreTraining(model, SINGLE).named_parameters()}
    assert {name: shape for name, (shape, _) in table.items()} == ours
    assert sorted(their for _, names in table.values() for their in names) == sorted(dict(theirs.named_parameters()))


# Writing


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from_huggingface(save_hub(hub_model("bert"), tmp_path / "in"), tmp_path / "save")
    return tmp_path / "save"


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path, checkpoint: Path) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("the check failed")

    with pytest.raises(UserError, match="the check failed"):
        to_huggingface(checkpoint, tmp_path / "out", check=refuse)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "save"]


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    to_huggingface(checkpoint, tmp_path / "out")  # an empty folder may be there
    with pytest.raises(UserError, match="is not empty.*--overwrite"):
        to_huggingface(checkpoint, tmp_path / "out")
    (tmp_path / "out" / "old.txt").write_text("")
    to_huggingface(checkpoint, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="is not an earlier export"):
        to_huggingface(checkpoint, tmp_path / "mine", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        to_huggingface(checkpoint, tmp_path / "mine" / "thesis.txt", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        to_huggingface(checkpoint, tmp_path / "mine" / "thesis.txt" / "out")


def test_a_damaged_or_missing_checkpoint_is_not_exported(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        to_huggingface(tmp_path / "none", tmp_path / "out")
    path = checkpoint / "iter_0000000" / "model-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        to_huggingface(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: {**model, "num_layers": 3}, "encoder.layers.2.attention.query_key_value.weight is missing"),
        (lambda model: {**model, "hidden_size": 48}, r"is \[40, 24\] instead of \[40, 48\]"),
        (lambda model: {**model, "num_layers": 1}, "encoder.layers.1.* has no place"),
        (lambda model: {**model, "colour": 1}, "unknown model fields: colour"),
        (lambda model: {**model, "architecture": "megatron-bert", "task_type_vocab_size": 3}, "no Hugging Face class"),
        (lambda model: None, "no section model"),
    ],
)
def test_a_config_of_another_model_is_named(tmp_path: Path, change: Any, message: str) -> None:
    hub = read_huggingface(save_hub(hub_model("bert"), tmp_path / "in"))
    save_checkpoint(
        tmp_path / "save",
        7,
        model=[whole_piece(name, tensor) for name, tensor in hub.parameters.items()],
        optimizer=[],
        files={"config.json": json_bytes({"model": change(to_dict(hub.model))}), "train_state.json": json_bytes({})},
        context=SINGLE,
    )
    with pytest.raises(UserError, match=message):
        to_huggingface(tmp_path / "save", tmp_path / "out")


def test_the_card_tells_how_the_model_was_trained(tmp_path: Path) -> None:
    config = ModelConfig(
        num_layers=1,
        hidden_size=24,
        num_attention_heads=3,
        ffn_hidden_size=40,
        max_position_embeddings=20,
        vocab_size=40,
    )
    ours = BertForPreTraining(config, SINGLE)
    initialize(ours, 1)
    options = {"optimizer": {"lr": 1e-4, "lr_decay_style": "linear"}, "training": {"seed": 1234, "train_samples": None}}
    save_ours(ours, config, tmp_path / "save", **options)
    to_huggingface(tmp_path / "save", tmp_path / "my-bert")
    card = (tmp_path / "my-bert" / "README.md").read_text(encoding="utf-8")
    facts = ["consumed samples | 38400", "step | 1200", "lr | 0.0001", "lr decay style | linear", "seed | 1234"]
    for part in ("# my-bert", "MegatronBertForPreTraining", *(f"| {fact} |" for fact in facts)):
        assert part in card
    assert "train samples" not in card
