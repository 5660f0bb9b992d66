"""Continued pre-training from a Hugging Face folder, and back."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from megatron.checkpoint.huggingface import from_huggingface, to_huggingface
from megatron.errors import UserError
from tests.model.hub import BERT, MEGATRON, make_pair
from tests.training.corpus import records
from tests.training.run import train

SIZES = {"vocab_size": 65, "max_position_embeddings": 64, "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


def published(folder: Path, architecture: str) -> transformers.PreTrainedModel:
    """A model with random weights in FOLDER/hub, as its authors would have put it there."""
    shape = dataclasses.replace({"bert": BERT, "megatron-bert": MEGATRON}[architecture], **SIZES)
    model = make_pair(shape).theirs
    model.save_pretrained(folder / "hub")
    shutil.copy(folder / "vocab.txt", folder / "hub" / "vocab.txt")
    return model


def loss_of_class(folder: Path) -> float:
    """MLM loss of the evaluation samples of a run in FOLDER, by the Hugging Face class of FOLDER/hub."""
    from megatron.config import DataConfig
    from megatron.data.batches import evaluation_batches, open_splits
    from megatron.data.tokenizer import load_tokenizer

    model = transformers.AutoModelForPreTraining.from_pretrained(folder / "hub").eval()
    splits = open_splits(
        DataConfig(data_path=(str(folder / "corpus_text_sentence"),), split="90,10,0", seq_length=48),
        seed=1234,
        tokenizer=load_tokenizer("BertWordPieceLowerCase", str(folder / "vocab.txt")),
    )
    total, count = 0.0, 0
    for batch in evaluation_batches(splits["valid"], samples=8, micro_batch_size=4, rank=0, size=1):
        mask = torch.arange(48) < torch.from_numpy(batch.lengths)[:, None]
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(batch.tokens),
                token_type_ids=torch.from_numpy(batch.token_types),
                attention_mask=mask.long(),
            ).prediction_logits
        picked = logits.reshape(-1, logits.shape[-1])[torch.from_numpy(batch.masked_positions)]
        labels = torch.from_numpy(batch.masked_labels)
        total += torch.nn.functional.cross_entropy(picked, labels, reduction="sum").item()
        count += len(labels)
    return total / count


@pytest.mark.parametrize("architecture", ["bert", "megatron-bert"])
def test_training_starts_with_the_loss_of_the_published_model(corpus: Path, architecture: str) -> None:
    published(corpus, architecture)
    from_huggingface(corpus / "hub", corpus / "converted")
    shape = dict.fromkeys(("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"))
    config = corpus / "converted" / "iter_0000000" / "config.json"  # the shape, epsilon and tokenizer of the folder
    flags = {**shape, "config": config, "load": corpus / "converted", "finetune": True}
    train(corpus, **flags, skip_train=True)
    (valid,) = records(corpus, "valid")
    assert valid["mlm_loss"] == pytest.approx(loss_of_class(corpus), rel=1e-5)
    train(corpus, **flags, save=corpus / "save", train_iters=2, metrics_file=corpus / "on.jsonl")
    assert [row["step"] for row in records(corpus, name="on.jsonl")] == [1, 2]
    to_huggingface(corpus / "save", corpus / "exported")
    transformers.AutoModel.from_pretrained(corpus / "exported")


def test_a_flag_that_contradicts_the_published_shape_is_refused(corpus: Path) -> None:
    published(corpus, "bert")
    from_huggingface(corpus / "hub", corpus / "converted")
    with pytest.raises(UserError, match="another model"):
        train(corpus, load=corpus / "converted", finetune=True)
