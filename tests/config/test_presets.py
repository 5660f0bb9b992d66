import math

import pytest
import torch

from megatron.config import ModelConfig
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.presets import PRESETS

# Parameters with MLM and SOP heads, counted from the published shapes.
PARAMETERS = {
    "roberta-tiny-clue": 7_556_863,
    "roberta-tiny-pair": 7_556_863,
    "roberta-tiny3l312-clue": 6_384_679,
    "roberta-tiny3l768-clue": 29_012_311,
    "roberta-large-clue": 313_162_583,
    "roberta-large-pair": 313_162_583,
    "bert-base-clue": 92_803_159,
    "bert-base-chinese": 102_882_442,
    "roberta-wwm-ext": 102_882_442,
    "macbert-base": 102_882_442,
    "erlangshen-roberta-110m": 102_882_442,
    "roberta-wwm-ext-large": 326_597_258,
    "macbert-large": 326_597_258,
    "erlangshen-roberta-330m": 326_597_258,
    "megatron-bert-cased-345m": 334_723_458,
    "megatron-bert-uncased-345m": 336_297_858,
    "erlangshen-megatronbert-1.3b": 1_261_593_346,
    "erlangshen-megatronbert-3.9b": 3_845_330_690,
    "ernie-1.0-base-zh": 100_477_778,
    "ernie-1.0-base-zh-cw": 117_398_850,
    "ernie-1.0-large-zh-cw": 273_034_834,
    "ernie-3.0-base-zh": 118_578_498,
    "ernie-3.0-xbase-zh": 297_147_458,
}


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    for name, expected in PARAMETERS.items():
        with torch.device("meta"):
            model = BertForPreTraining(PRESETS[name], ParallelContext.single())
        assert sum(math.prod(p.shard.global_shape) for p in model.parameters()) == expected, name


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_are_valid(name: str) -> None:
    assert PRESETS[name].problems() == []
    assert PRESETS[name].ffn_hidden_size and PRESETS[name].vocab_size


def test_heads_of_256() -> None:
    assert PRESETS["erlangshen-megatronbert-1.3b"].head_size == 256
    assert isinstance(PRESETS["erlangshen-megatronbert-1.3b"], ModelConfig)
