"""Hugging Face models of random shapes: the same logits and loss here, and the same bits back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from megatron.checkpoint import load_tensors, read_config
from megatron.checkpoint.huggingface import from_huggingface, to_huggingface
from megatron.config import model_from_dict
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import parameter_pieces
from tests.checkpoint.hub import save_hub

SINGLE = ParallelContext.single()


@st.composite
def models(draw: st.DrawFn) -> transformers.PreTrainedModel:
    """A model for pre-training with random weights, everywhere."""
    family = draw(st.sampled_from(["MegatronBert", "Bert", "Ernie"]))
    heads = draw(st.integers(1, 5))
    shape: dict[str, Any] = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "hidden_size": heads * 2 * draw(st.integers(1, 4)),
        "intermediate_size": draw(st.integers(1, 50)),
        "vocab_size": draw(st.integers(34, 90)),
        "max_position_embeddings": draw(st.integers(12, 40)),
        "type_vocab_size": draw(st.integers(2, 4)),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
        "layer_norm_eps": 10 ** draw(st.floats(-12, -1)),
    }
    if family == "Ernie":
        shape |= {"use_task_id": draw(st.booleans()), "task_type_vocab_size": draw(st.integers(1, 4))}
    model = getattr(transformers, f"{family}ForPreTraining")(getattr(transformers, f"{family}Config")(**shape)).eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


@settings(max_examples=8, deadline=None)
@given(theirs=models(), files=st.sampled_from([None, 3000, 20000]), seed=st.integers(0, 99))
@torch.no_grad()
def test_logits_loss_and_bits(theirs: transformers.PreTrainedModel, files: int | None, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_hub(theirs, root / "in", max_shard_size=files or "5GB")
        from_huggingface(root / "in", root / "save")
        checkpoint = root / "save" / "iter_0000000"
        ours = BertForPreTraining(model_from_dict(read_config(checkpoint)["model"]), SINGLE)
        load_tensors(checkpoint, "model", parameter_pieces(ours.named_parameters()), context=SINGLE)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(theirs.config.vocab_size, (3, 12), generator=generator)
        types = torch.randint(2, (3, 12), generator=generator)
        order = torch.randint(2, (3,), generator=generator)
        lengths = torch.tensor([12, 5, 9])
        real = torch.arange(12) < lengths[:, None]
        positions = real.flatten().nonzero().flatten()[::3]
        labels = torch.randint(theirs.config.vocab_size, positions.shape, generator=generator)
        targets = torch.full((36,), -100)
        targets[positions] = labels
        output = theirs(
            input_ids=tokens, token_type_ids=types, attention_mask=real.long(), labels=targets.view(3, 12),
            next_sentence_label=order,
        )  # fmt: skip
        x = ours.hidden_states(tokens, types, lengths, None)
        mlm = output.prediction_logits.flatten(0, 1)[positions]
        torch.testing.assert_close(ours.mlm_logits(x, positions), mlm, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.sop_logits(x[0]), output.seq_relationship_logits, rtol=1e-4, atol=1e-4)
        sums = ours(tokens, types, lengths, positions, labels, order, None)
        torch.testing.assert_close(sums.mlm / len(labels) + sums.sop / 3, output.loss, rtol=1e-5, atol=1e-5)
        to_huggingface(root / "save", root / "out", max_file_bytes=files)
        assert same_bits(root / "in", root / "out")
        if files:
            shutil.rmtree(root / "save")
            from_huggingface(root / "out", root / "save")
            to_huggingface(root / "save", root / "whole")
            assert same_bits(root / "in", root / "whole")
            loaded = transformers.AutoModelForPreTraining.from_pretrained(root / "out", local_files_only=True)
            again = loaded(input_ids=tokens, token_type_ids=types, attention_mask=real.long())
            torch.testing.assert_close(again.prediction_logits, output.prediction_logits, rtol=1e-4, atol=1e-4)


def same_bits(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same weights; an Ernie without task types is exported as Bert."""
    one, two = (
        {
            name.replace("ernie.", "bert."): tensor
            for path in sorted(where.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
        for where in (folder, other)
    )
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
