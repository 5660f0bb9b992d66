import json
from pathlib import Path

import pytest

from megatron.arguments import parse
from megatron.config import PretrainConfig, to_dict
from megatron.errors import UserError
from megatron.megatron_flags import ADVICE
from megatron.presets import PRESETS


def parsed(*argv: str) -> PretrainConfig:
    return parse(PretrainConfig, argv, prog="pretrain_bert.py", description="Test.", presets=PRESETS, advice=ADVICE)


def test_flags_have_megatrons_names() -> None:
    config = parsed(
        "--num-layers", "4", "--lr=1e-4", "--data-path", "0.3", "a", "0.7", "b", "--bf16", "--split", "9,1,0"
    )
    assert config.model.num_layers == 4 and config.optimizer.lr == 1e-4 and config.precision.bf16
    assert config.data.data_path == ("0.3", "a", "0.7", "b") and config.data.split == "9,1,0"


def test_flags_override_the_preset() -> None:
    config = parsed("--preset", "roberta-tiny-clue", "--num-layers", "6")
    assert (config.model.num_layers, config.model.hidden_size, config.model.architecture) == (6, 312, "bert")


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match="--preset tiny is unknown; there are: roberta-tiny-clue"):
        parsed("--preset", "tiny")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "model:\n  num_layers: 3\nlr: 1e-4\ndata_path: [a]\nbf16: true\nfp16: false\nmin_lr: null\n"),
        ("c.toml", 'lr = 1e-4\ndata_path = ["a"]\nbf16 = true\n[model]\nnum_layers = 3\n'),
        ("c.json", '{"model": {"num_layers": 3}, "lr": 1e-4, "data_path": ["a"], "bf16": true}'),
    ],
)
def test_a_file_says_what_flags_say_and_flags_override_it(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = parsed("--config", str(path), "--data-path", "b")
    assert config.model.num_layers == 3 and config.optimizer.lr == 1e-4 and config.precision.bf16
    assert config.data.data_path == ("b",) and not config.precision.fp16


def test_a_saved_configuration_can_be_given_again(tmp_path: Path) -> None:
    config = parsed("--preset", "roberta-tiny-clue", "--data-path", "a", "--rampup-batch-size", "8", "8", "100")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert parsed("--config", str(path)) == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "a: [1,"])
def test_a_bad_file_is_one_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="--config .*c.yaml"):
        parsed("--config", str(path))


def test_a_missing_file_is_one_message() -> None:
    with pytest.raises(UserError, match="--config nowhere.yaml: .*No such file"):
        parsed("--config", "nowhere.yaml")


def test_an_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--num-layrs", "3")
    assert stop.value.code == 2 and "--num-layers" in capsys.readouterr().err


def test_a_wrong_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--num-layers", "x"], ["--lr-decay-style", "exponential"], ["--rampup-batch-size", "1", "2"]):
        with pytest.raises(SystemExit) as stop:
            parsed(*argv)
        assert stop.value.code == 2
    assert "--num-layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--model-parallel-size", "--tensor-model-parallel-size"),
        ("--batch-size=8", "--micro-batch-size"),
        ("--norm_epsilon", "--layernorm-epsilon"),
        ("--DDP-impl", "leave it out"),
        ("--exit-signal-handler", "always saves"),
        ("--use-flash-attn", "compiled"),
    ],
)
def test_flags_of_megatron_that_are_none_here_get_advice(flag: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(flag, "2")
    assert hint in str(error.value)


def test_no_advice_for_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    known = capsys.readouterr().out
    assert not [name for name in ADVICE if f"--{name} " in known or f"--{name}\n" in known]


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Shape of the encoder." in text and "Peak learning rate." in text
