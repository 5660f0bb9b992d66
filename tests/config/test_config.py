import dataclasses
import json
from pathlib import Path

import pytest

from megatron.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainingConfig,
    model_from_dict,
    to_dict,
    with_vocabulary,
)
from megatron.errors import UserError

VALID = PretrainConfig(
    model=ModelConfig(num_layers=2, hidden_size=16, num_attention_heads=4, max_position_embeddings=32),
    data=DataConfig(data_path=("a",), seq_length=32, vocab_file="vocab.txt"),
    optimizer=OptimizerConfig(lr=1e-3),
    training=TrainingConfig(micro_batch_size=4, train_iters=10),
)


def changed(**values: object) -> PretrainConfig:
    """VALID with fields changed, whatever section they are in."""
    config = VALID
    for name, value in values.items():
        for section in dataclasses.fields(config):
            part = getattr(config, section.name)
            if name in {field.name for field in dataclasses.fields(part)}:
                config = dataclasses.replace(config, **{section.name: dataclasses.replace(part, **{name: value})})
                break
        else:
            raise AssertionError(name)
    return config


def test_what_follows_is_filled_in() -> None:
    config = VALID.resolved(world_size=3)
    assert config.model.ffn_hidden_size == 64 and config.training.global_batch_size == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 0}, "--num-layers is required"),
        ({"num_attention_heads": 3}, "nearest that do: 1, 2, 4"),
        ({"hidden_dropout": 1.0}, "--hidden-dropout must be in"),
        ({"max_position_embeddings": 16}, "--max-position-embeddings 16 is below --seq-length 32"),
        ({"type_vocab_size": 1}, "--type-vocab-size"),
        ({"data_path": ()}, "--data-path is required"),
        ({"seq_length": 4}, "--seq-length must be between"),
        ({"mask_prob": 0.0}, "--mask-prob 0.0 is not a probability"),
        ({"mask_prob": 1.5}, "--mask-prob 1.5 is not a probability"),
        ({"mask_prob_end": 0.3}, "--mask-prob-end and --mask-prob-samples go together"),
        ({"mask_prob_end": 0.0, "mask_prob_samples": 5}, "--mask-prob-end 0.0 is not a probability"),
        ({"mask_prob_end": 0.3, "mask_prob_samples": 0}, "--mask-prob-samples must be positive"),
        ({"train_data_path": ("b",)}, "--data-path, which --split divides, excludes --train-"),
        ({"data_path": (), "train_data_path": ("b",), "split": "1,1"}, "--split divides --data-path"),
        ({"bert_no_binary_head": True, "sentence_objective": "nsp"}, "excludes --sentence-objective nsp"),
        ({"full_sentences": True}, "--full-sentences has no pairs: give --sentence-objective none"),
        ({"max_ngrams": 0}, "--max-ngrams"),
        ({"vocab_file": None}, "needs --vocab-file"),
        ({"tokenizer_type": "SentencePieceTokenizer"}, "needs --tokenizer-model"),
        ({"lr": 0.0}, "--lr is required"),
        ({"min_lr": 1.0}, "--min-lr 1.0 must be between 0 and --lr"),
        ({"lr_warmup_fraction": 0.1, "lr_warmup_iters": 5}, "--lr-warmup-fraction excludes"),
        ({"lr_warmup_samples": 5}, "takes --lr-decay-iters and --lr-warmup-iters"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"loss_scale": 8.0}, "--loss-scale needs --fp16"),
        ({"cuda_graphs": True, "tensor_model_parallel_size": 2}, "--cuda-graphs is for models that one GPU holds"),
        ({"cuda_graphs": True, "compile": True}, "--cuda-graphs excludes --compile"),
        ({"cuda_graphs": True, "pipeline_trace": "traces"}, "--cuda-graphs excludes --pipeline-trace"),
        ({"train_samples": 100}, "give one of --train-iters and --train-samples"),
        ({"train_iters": None}, "give one of --train-iters and --train-samples"),
        ({"global_batch_size": 6}, "--micro-batch-size 4 x data-parallel size 2; nearest: 8"),
        ({"rampup_batch_size": (8, 8, 100)}, "--rampup-batch-size needs a run of --train-samples"),
        ({"save_interval": 5}, "--save-interval needs --save"),
        ({"finetune": True}, "--finetune needs --load"),
        ({"log_interval": 0}, "--log-interval"),
        ({"exit_interval": 0}, "--exit-interval must be positive"),
    ],
)  # fmt: skip
def test_a_violated_rule_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(**values).resolved(world_size=2)
    assert message in str(error.value)


def test_all_violations_are_reported_together() -> None:
    with pytest.raises(UserError) as error:
        PretrainConfig().resolved(world_size=1)
    for flag in ("--num-layers", "--hidden-size", "--data-path", "--lr", "--micro-batch-size", "--train-iters"):
        assert flag in str(error.value)


def test_rows_of_the_word_table() -> None:
    model = VALID.model
    assert with_vocabulary(model, 100).vocab_size == 100
    assert with_vocabulary(dataclasses.replace(model, make_vocab_size_divisible_by=64), 100).vocab_size == 128
    assert with_vocabulary(dataclasses.replace(model, vocab_size=120), 100).vocab_size == 120
    with pytest.raises(UserError, match="--vocab-size 90 is smaller than the vocabulary of 100 tokens"):
        with_vocabulary(dataclasses.replace(model, vocab_size=90), 100)


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(to_dict(VALID)))
    assert model_from_dict(values["model"]) == VALID.model
    with pytest.raises(UserError, match="unknown model fields: depth"):
        model_from_dict({**values["model"], "depth": 3})
