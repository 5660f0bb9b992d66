"""Reading Hugging Face folders: every format of weights, configurations of other systems, damaged and hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.checkpoint import find_checkpoint, read_config
from megatron.checkpoint.huggingface import from_huggingface, read_huggingface, to_huggingface
from megatron.errors import UserError
from megatron.mpu.context import ParallelContext
from tests.checkpoint.hub import assert_same_weights, change_config, hub_model, save_hub

SINGLE = ParallelContext.single()


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
    names = set(load_file(checkpoint / "model-00000.safetensors"))
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


def test_a_head_of_an_unknown_class_is_reported(tmp_path: Path) -> None:
    folder = save_hub(hub_model("bert", "ForSequenceClassification"), tmp_path)
    change_config(folder, architectures=["BertForColours"])
    hub = read_huggingface(folder)
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
