"""Conversion from and to Megatron-LM's checkpoints, against transformers' MegatronBert with the same weights."""

from __future__ import annotations

import argparse
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.checkpoint import find_checkpoint, json_bytes, load_tensors, read_config, save_checkpoint
from megatron.checkpoint.huggingface import from_huggingface
from megatron.checkpoint.megatron_lm import from_megatron_lm, to_megatron_lm
from megatron.checkpoint.megatron_lm_file import Inert, read_torch_file
from megatron.config import ModelConfig, model_from_dict, to_dict
from megatron.errors import UserError
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces
from tests.checkpoint.hub import SHAPE, TOKENS, save_hub
from tests.checkpoint.megatron_lm import padded_rows, write_megatron_lm
from tests.checkpoint.weights import weights_of
from tests.training.corpus import records, write_corpus
from tests.training.run import train

SINGLE = ParallelContext.single()
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def their_model(**changes: Any) -> transformers.PreTrainedModel:
    shape = {
        **SHAPE,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 3e-6,
    }
    torch.manual_seed(5)
    model = transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model


@pytest.fixture(scope="module")
def theirs() -> transformers.PreTrainedModel:
    return their_model()


@torch.no_grad()
def assert_same_logits(save: Path, theirs: transformers.PreTrainedModel, *, binary_head: bool = True) -> None:
    """A converted checkpoint, loaded as training does, computes what the model it was made from does."""
    checkpoint = find_checkpoint(save, context=SINGLE)
    assert checkpoint is not None
    config = model_from_dict(read_config(checkpoint)["model"])
    assert (config.vocab_size, config.bert_no_binary_head) == (40, not binary_head)
    ours = BertForPreTraining(config, SINGLE)
    load_tensors(checkpoint, "model", parameter_pieces(ours.named_parameters()), context=SINGLE)
    tokens, types_ = torch.randint(40, (3, 19)), torch.randint(2 if binary_head else 1, (3, 19))
    lengths = torch.tensor([19, 5, 11])
    real = torch.arange(19) < lengths[:, None]
    x = ours.hidden_states(tokens, types_, lengths, None)
    output = theirs(input_ids=tokens, token_type_ids=types_, attention_mask=real.long())
    mlm = ours.mlm_logits(x, real.flatten().nonzero().flatten())
    torch.testing.assert_close(mlm, output.prediction_logits[real], rtol=1e-5, atol=1e-5)
    if binary_head:
        torch.testing.assert_close(ours.sop_logits(x[0]), output.seq_relationship_logits, rtol=1e-5, atol=1e-5)


# From Megatron-LM


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
def test_every_version_and_layout_gives_the_same_logits(
    tmp_path: Path, theirs: transformers.PreTrainedModel, version: float, tp: int, pp: int
) -> None:
    write_megatron_lm(theirs, tmp_path / "in", version=version, tp=tp, pp=pp)
    notices = from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=40)
    assert notices == ("the optimizer's state is not converted",)
    assert_same_logits(tmp_path / "save", theirs)


@pytest.mark.parametrize(
    "saved",
    [
        {"chunks": 2, "pp": 2},
        {"zipped": False, "tp": 2},
        {"name": "release"},
        {"binary_head": False, "pp": 2},
        {"vocab_size": 40, "normalization": "LayerNorm"},
    ],
)
def test_other_forms_give_the_same_logits(tmp_path: Path, saved: dict[str, Any]) -> None:
    theirs = their_model()
    binary_head = saved.get("binary_head", True)
    if not binary_head:
        theirs.bert.embeddings.token_type_embeddings.weight.data.zero_()
    write_megatron_lm(theirs, tmp_path / "in", **saved)
    vocab_size = None if "vocab_size" in saved else 40
    from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=vocab_size)
    assert_same_logits(tmp_path / "save", theirs, binary_head=binary_head)


def test_names_of_megatron_core_are_read(tmp_path: Path, theirs: transformers.PreTrainedModel) -> None:
    """Also as its Transformer Engine layers spell them: each LayerNorm inside the linear layer that follows."""
    folder = write_megatron_lm(theirs, tmp_path / "in") / "iter_0000010" / "mp_rank_00"
    content = torch.load(folder / "model_optim_rng.pt", weights_only=False)
    names = {
        "self_attention.query_key_value.": "self_attention.linear_qkv.",
        "self_attention.dense.": "self_attention.linear_proj.",
        "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
        "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "post_attention_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    old = content["model"]
    model = {f"embedding.{kind}.weight": part["weight"] for kind, part in old["language_model"]["embedding"].items()}
    for name, tensor in old["language_model"]["encoder"].items():
        for before, after in names.items():
            name = name.replace(before, after)
        model[f"encoder.{name}"] = tensor
    model |= {f"pooler.{name}": tensor for name, tensor in old["language_model"]["pooler"].items()}
    model |= {f"binary_head.{name}": tensor for name, tensor in old["binary_head"].items()}
    for name, tensor in old["lm_head"].items():
        model["output_layer.bias" if name == "bias" else f"lm_head.{name.replace('layernorm', 'layer_norm')}"] = tensor
    model["encoder.layers.0.self_attention.core_attention._extra_state"] = None
    torch.save({**content, "model": model}, folder / "model_optim_rng.pt")
    assert len(from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=40)) == 1
    assert_same_logits(tmp_path / "save", theirs)


def test_the_fused_gelu_is_tanh_and_said(tmp_path: Path, theirs: transformers.PreTrainedModel) -> None:
    write_megatron_lm(theirs, tmp_path / "in", openai_gelu=False, bias_gelu_fusion=True)
    notices = from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=40)
    assert "fused GELU" in notices[1]
    assert read_config(tmp_path / "save" / "iter_0000000")["model"]["activation"] == "gelu_new"
    write_megatron_lm(theirs, tmp_path / "erf", openai_gelu=False)
    from_megatron_lm(tmp_path / "erf", tmp_path / "save2", vocab_size=40)
    assert read_config(tmp_path / "save2" / "iter_0000000")["model"]["activation"] == "gelu"


def test_what_is_not_known_or_differs_is_said(tmp_path: Path, theirs: transformers.PreTrainedModel) -> None:
    folder = write_megatron_lm(theirs, tmp_path / "in", tp=2) / "iter_0000010"
    path = folder / "mp_rank_01" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["model"]["lm_head"]["dense.bias"] += 1
    content["model"]["classification_head"] = {"weight": torch.ones(2, 24)}
    torch.save(content, path)
    notices = from_megatron_lm(tmp_path / "in", tmp_path / "save")
    assert [notice.split(":")[0] for notice in notices[1:]] == [
        "not converted",
        "lm_head.dense.bias differs between tensor-parallel ranks, which should hold the same; rank 0 counts",
        "the vocabulary's size is not known",
    ]
    assert weights_of(tmp_path / "save" / "iter_0000000")["lm_head.bias"].shape == (padded_rows(theirs),) == (64,)


def test_training_goes_on_from_it(tmp_path: Path) -> None:
    """And starts with the loss of the same model that came through a Hugging Face folder."""
    write_corpus(tmp_path)
    sizes = {"vocab_size": 65, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 128}
    theirs = their_model(**sizes)
    write_megatron_lm(theirs, tmp_path / "megatron", tp=2, pp=2, version=1.0)
    from_megatron_lm(tmp_path / "megatron", tmp_path / "converted", vocab_file=tmp_path / "vocab.txt")
    theirs.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes())
    from_huggingface(tmp_path / "hub", tmp_path / "from_hub")
    losses = {}
    for name in ("converted", "from_hub"):
        shape = dict.fromkeys(("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"))
        config = tmp_path / name / "iter_0000000" / "config.json"
        metrics = tmp_path / f"{name}.jsonl"
        train(tmp_path, **shape, config=config, load=tmp_path / name, train_iters=2, metrics_file=metrics)
        losses[name] = [row["mlm_loss"] for row in records(tmp_path, "train", name=metrics.name)]
    assert len(losses["converted"]) == 2
    assert losses["converted"] == losses["from_hub"]


# What is refused


class Malicious:
    """A pickle of it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "text", "named"),
    [
        (os.system, "touch {}", "posix.system"),
        (os.mkdir, "{}", "posix.mkdir"),
        (eval, "open({!r}, 'w')", "eval"),
    ],
)
def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, theirs: transformers.PreTrainedModel, function: Any, text: str, named: str, zipped: bool
) -> None:
    marker = tmp_path / "marker"
    path = write_megatron_lm(theirs, tmp_path / "in") / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["args"].tokenizer = Malicious(function, text.format(str(marker)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"is refused: it names {named}.*nothing of it was run"):
        from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=40)
    assert not marker.exists()
    assert not (tmp_path / "save").exists()
    torch.load(path, weights_only=False)  # it does run where it is trusted
    assert marker.exists()


def test_classes_of_megatron_lm_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of its modules become inert, whatever those modules do here."""
    module = types.ModuleType("megatron.evil")
    ran: list[str] = []

    class Evil:
        def __reduce__(self) -> Any:
            return (type(self), ("called",), {"state": 1})

        def __init__(self, text: str = "") -> None:
            ran.append(text)

    Evil.__module__, Evil.__qualname__ = "megatron.evil", "Evil"
    module.Evil = Evil  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron.evil", module)
    content = {"object": Evil(), "numbers": np.random.RandomState(1).get_state(), "weight": torch.ones(2)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
        ran.clear()
        loaded = read_torch_file(tmp_path / "file.pt")
        assert type(loaded["object"]) is Inert
        assert torch.equal(loaded["weight"], torch.ones(2))
        assert ran == []


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_named(tmp_path: Path, theirs: transformers.PreTrainedModel, zipped: bool) -> None:
    path = write_megatron_lm(theirs, tmp_path / "in", zipped=zipped) / "iter_0000010" / "mp_rank_00"
    path /= "model_optim_rng.pt"
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:100], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="model_optim_rng.pt"):
            from_megatron_lm(tmp_path / "in", tmp_path / "save", vocab_size=40)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"apply_residual_connection_post_layernorm": True}, "trained with apply_residual_connection_post_layernorm"),
        ({"position_embedding_type": "rope"}, "position_embedding_type = rope"),
        ({"num_layers": 6}, "written with 6 layers, but its files hold 4"),
        ({"tensor_model_parallel_size": 2}, "lacks the file of tensor-parallel rank 1 of pipeline stage 0"),
        ({"num_attention_heads": None}, "give --num-attention-heads"),
        ({"num_attention_heads": 5}, "does not divide --hidden-size 24"),
        ({"version": 4.0}, "checkpoint_version 4.0"),
        ({"vocab_size": 65}, "has 64 rows, fewer than the 65 tokens"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, theirs: transformers.PreTrainedModel, saved: dict[str, Any], message: str
) -> None:
    write_megatron_lm(theirs, tmp_path / "in", **saved)
    with pytest.raises(UserError, match=message):
        from_megatron_lm(tmp_path / "in", tmp_path / "save")
    assert not (tmp_path / "save").exists()


def test_missing_files_are_named(tmp_path: Path, theirs: transformers.PreTrainedModel) -> None:
    folder = write_megatron_lm(theirs, tmp_path / "in", tp=2, pp=2)
    (folder / "iter_0000010" / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    with pytest.raises(UserError, match="lacks the file of tensor-parallel rank 1 of pipeline stage 0"):
        from_megatron_lm(folder, tmp_path / "save")
    (folder / "latest_checkpointed_iteration.txt").write_text("11")
    with pytest.raises(UserError, match="iter_0000011 does not exist"):
        from_megatron_lm(folder, tmp_path / "save")
    with pytest.raises(UserError, match="is not a folder"):
        from_megatron_lm(tmp_path / "none", tmp_path / "save")
    (folder / "iter_0000010" / "mp_rank_00_000_000").mkdir()
    with pytest.raises(UserError, match="layout that cannot be converted"):
        from_megatron_lm(folder / "iter_0000010", tmp_path / "save")


# To Megatron-LM


def save_ours(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A checkpoint with random weights; returns them."""
    shape = {"num_layers": 4, "hidden_size": 24, "num_attention_heads": 4, "ffn_hidden_size": 40, "vocab_size": 40}
    config = ModelConfig(**{**shape, "max_position_embeddings": 21, "init_method_std": 0.3, **changes})
    model = BertForPreTraining(config, SINGLE)
    initialize(model, 1)
    if config.bert_no_binary_head:
        model.embeddings.token_type_embeddings.weight.data.zero_()  # type: ignore[union-attr]
    files = {
        "config.json": json_bytes({"model": to_dict(config), "data": {"tokenizer_type": "BertWordPieceCase"}}),
        "train_state.json": json_bytes({"step": 7}),
        "vocab.txt": "".join(f"{token}\n" for token in TOKENS).encode(),
    }
    pieces = parameter_pieces(model.named_parameters())
    save_checkpoint(folder, 7, model=pieces, optimizer=[], files=files, context=SINGLE)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("tp", "pp", "changes", "naming"),
    [
        *((*layout, {}, "classic") for layout in LAYOUTS),
        (1, 1, {}, "core"),
        (2, 2, {}, "core"),
        (1, 2, {"bert_no_binary_head": True}, "classic"),
        (1, 2, {"bert_no_binary_head": True}, "core"),
        (2, 1, {"activation": "gelu_new"}, "classic"),
        (2, 1, {"activation": "gelu_new"}, "core"),
    ],
)
def test_there_and_back_is_bit_equal(tmp_path: Path, tp: int, pp: int, changes: dict[str, Any], naming: Any) -> None:
    ours = save_ours(tmp_path / "ours", **changes)
    to_megatron_lm(tmp_path / "ours", tmp_path / "there", tensor_parallel=tp, stages=pp, divisible_by=16, naming=naming)
    assert (tmp_path / "there" / "latest_checkpointed_iteration.txt").read_text() == "release"
    files = sorted((tmp_path / "there" / "release").glob("*/model_optim_rng.pt"))
    assert len(files) == tp * pp
    from_megatron_lm(tmp_path / "there", tmp_path / "back")
    back = tmp_path / "back" / "iter_0000000"
    returned = weights_of(back)
    assert returned.keys() == ours.keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in ours.items())
    before, after = (read_config(path)["model"] for path in (tmp_path / "ours" / "iter_0000007", back))
    assert before == after


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_what_is_written_is_what_megatron_lm_writes(
    tmp_path: Path, theirs: transformers.PreTrainedModel, tp: int, pp: int
) -> None:
    """The same keys and tensors, file by file, as the fixture of the same model, but for the padding."""
    from_huggingface(save_hub(theirs, tmp_path / "hub"), tmp_path / "ours")
    (note,) = to_megatron_lm(
        tmp_path / "ours", tmp_path / "out", tensor_parallel=tp, stages=pp, divisible_by=32 // tp, naming="classic"
    )
    assert "--openai-gelu" in note
    write_megatron_lm(theirs, tmp_path / "fixture", tp=tp, pp=pp, name="release")
    paths = sorted((tmp_path / "fixture").glob("release/*/model_optim_rng.pt"))
    for path in paths:
        expected = torch.load(path, weights_only=False)
        found = torch.load(tmp_path / "out" / path.relative_to(tmp_path / "fixture"), weights_only=False)
        assert isinstance(found["args"], argparse.Namespace)
        same = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size")
        for name in (*same, "tensor_model_parallel_size", "pipeline_model_parallel_size"):
            assert getattr(found["args"], name) == getattr(expected["args"], name), name
        assert found["checkpoint_version"] == 3.0
        assert_same_tree(found["model"], expected["model"])


def assert_same_tree(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_tree(found[key], expected[key])
        return
    tokens = (expected != 7).flatten(1).any(1) if expected.dim() == 2 else expected != 7
    assert found.shape == expected.shape
    assert torch.equal(found[tokens], expected[tokens])


def test_without_a_binary_head_the_type_of_all_tokens_goes_into_the_positions(tmp_path: Path) -> None:
    theirs = their_model()
    save_hub(theirs, tmp_path / "hub")
    weights = load_file(tmp_path / "hub" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name and "seq_rel" not in name}
    save_file(kept, tmp_path / "hub" / "model.safetensors", {"format": "pt"})
    from_huggingface(tmp_path / "hub", tmp_path / "ours")
    to_megatron_lm(tmp_path / "ours", tmp_path / "out", tensor_parallel=1, stages=1, divisible_by=8, naming="classic")
    from_megatron_lm(tmp_path / "out", tmp_path / "back")
    assert_same_logits(tmp_path / "back", theirs, binary_head=False)


def test_padding_has_no_probability(tmp_path: Path) -> None:
    save_ours(tmp_path / "ours")
    to_megatron_lm(tmp_path / "ours", tmp_path / "out", tensor_parallel=1, stages=1, divisible_by=128, naming="classic")
    model = read_torch_file(tmp_path / "out" / "release" / "mp_rank_00" / "model_optim_rng.pt")["model"]
    table, bias = model["language_model"]["embedding"]["word_embeddings"]["weight"], model["lm_head"]["bias"]
    probabilities = (torch.randn(5, 24) @ table.t() + bias).softmax(1)
    assert probabilities.shape == (5, 128)
    assert probabilities[:, 40:].sum() == 0


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        ({"architecture": "bert"}, (1, 1), "only the architecture megatron-bert"),
        ({"activation": "relu"}, (1, 1), "with gelu or gelu_new"),
        ({}, (3, 1), "--tensor-model-parallel-size 3 does not divide the heads 4; nearest that do: 1, 2, 4"),
        ({}, (1, 3), "--pipeline-model-parallel-size 3 does not divide the layers 4"),
        ({}, (0, 1), "--tensor-model-parallel-size 0"),
    ],
)
def test_what_megatron_lm_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], layout: tuple[int, int], message: str
) -> None:
    save_ours(tmp_path / "ours", **changes)
    with pytest.raises(UserError, match=message):
        to_megatron_lm(
            tmp_path / "ours",
            tmp_path / "out",
            tensor_parallel=layout[0],
            stages=layout[1],
            divisible_by=128,
            naming="classic",
        )
    assert not (tmp_path / "out").exists()
