"""Conversion from and to Hugging Face folders, against transformers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.checkpoint import NamedTensor, find_checkpoint, load_tensors, read_config, save_checkpoint
from megatron.checkpoint.hub_names import merge, parameter_table, split
from megatron.checkpoint.huggingface import from_huggingface, read_huggingface, to_huggingface
from megatron.config import ModelConfig, model_from_dict, to_dict
from megatron.errors import UserError
from megatron.model import BertForPreTraining, BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import ShardSpec, initialize
from tests.checkpoint.hub import CASES, TOKENS, change_config, hub_model, save_hub

SINGLE = ParallelContext.single()

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def our_model(checkpoint: Path) -> BertForPreTraining:
    """The model of a checkpoint, loaded as training does."""
    model = BertForPreTraining(model_from_dict(read_config(checkpoint)["model"]), SINGLE)
    into = {name: NamedTensor(tensor=p.data, shard=p.shard) for name, p in model.named_parameters()}
    load_tensors(checkpoint / "model.safetensors", into, what="weights", context=SINGLE)
    return model


def save_ours(model: torch.nn.Module, config: ModelConfig, folder: Path, **more: Any) -> Path:
    parameters = {name: NamedTensor(tensor=p.data, shard=p.shard) for name, p in model.named_parameters()}
    vocabulary = folder.parent / "words.txt"
    vocabulary.write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    arguments = {
        "config": {"model": to_dict(config), "data": {"tokenizer_type": "BertWordPieceCase"}, **more},
        "train_state": {"step": 1200, "consumed_samples": 38400},
        "extra_files": {"vocab.txt": vocabulary},
    }
    return save_checkpoint(folder, 1200, model=parameters, optimizer={}, context=SINGLE, **arguments)


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
        torch.testing.assert_close(ours.sop_logits(x), output.seq_relationship_logits, rtol=1e-5, atol=1e-5)


def assert_same_weights(folder: Path, other: transformers.PreTrainedModel) -> None:
    model, report = type(other).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    state, expected = model.state_dict(), other.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


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


# Formats of weights


def parameters_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_huggingface(folder).parameters


@pytest.mark.parametrize("layout", ["sharded", "bin", "old bin", "sharded bin", "encoder names", "gamma and beta"])
@pytest.mark.parametrize("case", ["megatron-bert", "bert"])
def test_every_format_of_weights_reads_the_same(tmp_path: Path, case: str, layout: str) -> None:
    theirs = hub_model(case)
    expected = parameters_of(save_hub(theirs, tmp_path / "plain"))
    folder = tmp_path / "other"
    if layout == "sharded":
        save_hub(theirs, folder, max_shard_size="5KB")
        assert len(list(folder.glob("*.safetensors"))) > 3
        assert (folder / "model.safetensors.index.json").exists()
    else:
        save_hub(theirs, folder)
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        # what older versions saved besides: tied tensors and buffers
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
        state["bert.embeddings.position_ids"] = torch.arange(21)[None]
        if layout == "gamma and beta":
            names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
            for new, old in names.items():
                state = {name.replace(new, old): tensor for name, tensor in state.items()}
        if layout == "encoder names":
            state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
        if layout == "sharded bin":
            parts = {f"pytorch_model-{i}.bin": dict(list(state.items())[i::3]) for i in range(3)}
            for name, part in parts.items():
                torch.save(part, folder / name)
            placed = {tensor: name for name, part in parts.items() for tensor in part}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
        else:
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout != "old bin")
    hub = read_huggingface(folder)
    assert hub.notices == ()
    assert set(hub.parameters) == set(expected)
    assert all(torch.equal(hub.parameters[name], tensor) for name, tensor in expected.items())


def test_half_precision_becomes_fp32(tmp_path: Path) -> None:
    theirs = hub_model("bert").half()
    parameters = parameters_of(save_hub(theirs, tmp_path))
    assert all(tensor.dtype == torch.float32 for tensor in parameters.values())
    table = theirs.bert.embeddings.word_embeddings.weight
    assert torch.equal(parameters["embeddings.word_embeddings.weight"], table.float())


def test_a_bias_saved_only_as_that_of_the_decoder_is_found(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path)
    expected = parameters_of(folder)["lm_head.bias"]
    state = load_file(folder / "model.safetensors")
    state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
    save_file(state, folder / "model.safetensors")
    assert torch.equal(parameters_of(folder)["lm_head.bias"], expected)


# Folders without heads, or with others


@pytest.mark.parametrize("case", ["megatron-bert", "bert", "ernie 3.0"])
def test_an_encoder_alone_is_converted_and_the_heads_reported(tmp_path: Path, case: str) -> None:
    theirs = hub_model(case, "Model")
    notices = from_huggingface(save_hub(theirs, tmp_path / "in"), tmp_path / "save")
    assert notices == ("left out, training will initialise it: lm_head, binary_head",)
    checkpoint = find_checkpoint(tmp_path / "save", context=SINGLE)
    assert checkpoint is not None
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "pooler.dense.weight" in names
    assert not any(name.startswith(("lm_head", "binary_head")) for name in names)
    assert read_config(checkpoint)["model"]["bert_no_binary_head"] is False
    assert "exported as" in to_huggingface(checkpoint, tmp_path / "out")[0]
    assert_same_weights(tmp_path / "out", theirs)


def test_a_masked_lm_has_no_binary_head(tmp_path: Path) -> None:
    hub = read_huggingface(save_hub(hub_model("bert", "ForMaskedLM"), tmp_path))
    assert hub.notices == ("left out, training will initialise it: pooler, binary_head",)
    assert hub.model.bert_no_binary_head
    assert "lm_head.bias" in hub.parameters


def test_a_head_of_another_task_is_reported(tmp_path: Path) -> None:
    hub = read_huggingface(save_hub(hub_model("bert", "ForSequenceClassification"), tmp_path))
    assert hub.notices[-1] == "not converted: classifier.bias, classifier.weight"
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= set(hub.parameters)


def test_an_untied_head_is_left_out(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path)
    state = load_file(folder / "model.safetensors")
    state["cls.predictions.decoder.weight"] = torch.randn(40, 24)
    save_file(state, folder / "model.safetensors")
    hub = read_huggingface(folder)
    assert "untied" in hub.notices[0]
    assert not any(name.startswith("lm_head") for name in hub.parameters)


# Configurations


def test_bert_weights_under_the_name_of_roberta(tmp_path: Path) -> None:
    theirs = hub_model("bert")
    folder = save_hub(theirs, tmp_path / "in")
    change_config(folder, model_type="roberta", architectures=["RobertaForMaskedLM"])
    from_huggingface(folder, tmp_path / "save")
    to_huggingface(tmp_path / "save", tmp_path / "out")
    assert_same_weights(tmp_path / "out", theirs)


def test_a_true_roberta_is_refused(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, type_vocab_size=1,
    )  # fmt: skip
    save_hub(transformers.RobertaForMaskedLM(config), tmp_path / "whole")
    with pytest.raises(UserError, match="does not hold the weights of a BERT"):
        read_huggingface(tmp_path / "whole")
    save_hub(transformers.RobertaModel(config), tmp_path / "encoder")
    with pytest.raises(UserError, match="one token type"):
        read_huggingface(tmp_path / "encoder")


def test_a_config_of_the_first_days_needs_no_model_type(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path)
    change_config(folder, model_type=None, architectures=None, layer_norm_eps=None, initializer_range=None)
    assert read_huggingface(folder).model.architecture == "bert"
    assert read_huggingface(folder).model.layernorm_epsilon == 1e-12
    change_config(save_hub(hub_model("megatron-bert"), folder), model_type=None)
    assert read_huggingface(folder).model.architecture == "megatron-bert"


def test_the_tables_count_where_config_json_is_wrong(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path)
    change_config(folder, vocab_size=21128)
    hub = read_huggingface(folder)
    assert hub.model.vocab_size == 40
    assert hub.notices == ("vocab_size is 21128 in config.json, but the table has 40 rows; the table counts",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' cannot be converted"),
        ({"hidden_act": "silu"}, "hidden_act 'silu' is not supported"),
        ({"hidden_act": 3}, "hidden_act is 3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, the weights have 2"),
        ({"num_hidden_layers": "2"}, "a value of type int is needed"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"intermediate_size": 45}, r"intermediate.dense.weight is \[44, 24\], but config.json says \[45, 24\]"),
        ({"hidden_size": 48}, "but config.json says"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
    ],
)
def test_configurations_that_cannot_be_converted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        from_huggingface(folder, tmp_path / "save")
    assert not (tmp_path / "save").exists()


# Damaged and hostile folders


class Bomb:
    def __reduce__(self) -> Any:
        return (open, ("bomb went off", "w"))


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ')


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def to_bin(content: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


def garbage_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def index_of(content: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def drop_layer(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["bert.encoder.layer.0.output.dense.bias"]
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (damage_config, "config.json is not a JSON file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
        (cut_weights, "is not a whole safetensors file"),
        (to_bin({"a": Bomb()}), "cannot be read as plain tensors"),
        (to_bin({"model": {"a": torch.zeros(1)}}), "other things than named tensors"),
        (to_bin([torch.zeros(1)]), "other things than named tensors"),
        (garbage_bin, "cannot be read as plain tensors"),
        (index_of({"weight_map": {"a": "../other/model.safetensors"}}), "not in its folder"),
        (index_of({"weight_map": {"a": "gone.safetensors"}}), "gone.safetensors is missing"),
        (index_of([]), "does not hold a JSON object"),
        (index_of({}), "has no weight_map"),
        (drop_layer, "lacks 1 tensors of the encoder, first bert.encoder.layer.0.output.dense.bias"),
    ],
)
def test_damaged_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    damage(folder)
    with pytest.raises(UserError, match=message):
        from_huggingface(folder, tmp_path / "save")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        from_huggingface(tmp_path / "none", tmp_path / "save")


def test_a_vocabulary_beyond_the_word_table_is_refused(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path)
    (folder / "vocab.txt").write_text("".join(f"{i}\n" for i in range(41)))
    with pytest.raises(UserError, match="has 41 tokens, the word table only 40 rows"):
        read_huggingface(folder)


def test_a_save_folder_with_a_checkpoint_is_not_touched(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert"), tmp_path / "in")
    from_huggingface(folder, tmp_path / "save")
    with pytest.raises(UserError, match="already holds a checkpoint"):
        from_huggingface(folder, tmp_path / "save")


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
    path = checkpoint / "iter_0000000" / "model.safetensors"
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
        model={
            name: NamedTensor(tensor=t, shard=ShardSpec(global_shape=tuple(t.shape)))
            for name, t in hub.parameters.items()
        },
        optimizer={},
        config={"model": change(to_dict(hub.model))},
        train_state={},
        extra_files={},
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
    for part in ("# my-bert", "MegatronBertForPreTraining", "| consumed samples | 38,400 |", "| step | 1,200 |",
                 "| lr | 0.0001 |", "| lr decay style | linear |", "| seed | 1,234 |", "| hidden size | 24 |"):  # fmt: skip
        assert part in card
    assert "train samples" not in card
    shutil.rmtree(tmp_path / "my-bert")
