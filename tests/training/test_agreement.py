"""Before the first step all ranks refuse together, with the rank and the item, if one of them has something else."""

import dataclasses
from pathlib import Path

import pytest

from megatron.config import to_dict
from megatron.training.agreement import MAY_DIFFER, code_facts, configuration_facts, differences
from tests.ranks import run_script
from tests.training.corpus import arguments, write_corpus
from tests.training.run import config_of

SCRIPT = Path(__file__).with_name("differing.py")


def other_vocabulary(folder: Path) -> str:
    """A vocabulary of the same size in another order."""
    tokens = (folder / "vocab.txt").read_text().split("\n")
    tokens[10], tokens[11] = tokens[11], tokens[10]
    (folder / "other.txt").write_text("\n".join(tokens))
    return f"--vocab-file {folder / 'other.txt'}"


def other_corpus(folder: Path) -> str:
    """A corpus with the lengths of the first and other words."""
    (folder / "other").mkdir()
    write_corpus(folder / "other", seed=0, name="corpus")
    path = folder / "other" / "corpus_text_sentence.bin"
    content = bytearray(path.read_bytes())
    content[0:2], content[2:4] = content[2:4], content[0:2]
    path.write_bytes(bytes(content))
    return f"--data-path {folder / 'other' / 'corpus_text_sentence'}"


@pytest.mark.parametrize(
    ("extra", "item"),
    [
        ("--hidden-size 64", "--hidden-size: 64 instead of 32"),
        ("--tensor-model-parallel-size 2", "--tensor-model-parallel-size: 2 instead of 1"),
        ("NCCL_ALGO=Ring", "variable NCCL_ALGO: Ring instead of none"),
        ("code", "code in megatron/errors.py: 0123456789ab instead of "),
        (other_vocabulary, "vocabulary: 65 tokens, "),
        (other_corpus, "corpus 1 of train: "),
    ],
    ids=["configuration", "layout", "environment", "code", "vocabulary", "corpus"],
)
def test_a_rank_that_differs_is_named_by_all(corpus: Path, extra: object, item: str) -> None:
    words = extra(corpus) if callable(extra) else extra
    argv = ["1", words, *arguments(corpus, global_batch_size=8, micro_batch_size=2)]
    results = run_script(SCRIPT, argv, 2, corpus, seconds=60)
    for code, error in results:
        assert code == 2 and "the ranks differ in" in error and "rank 1 (host" in error, error
        assert f"has another {item}" in error, error
    assert results[0] == results[1]
    assert not (corpus / "metrics.jsonl").exists()


def test_most_are_right_and_no_line_is_lost() -> None:
    facts = [{"x": "1"}, {"x": "2"}, {"x": "1"}, {"x": "3", "y": "0"}]
    assert differences(facts, ["a", "b", "b", "c"]) == [
        "rank 1 (host b) has another x: 2 instead of 1",
        "rank 3 (host c) has another x: 3 instead of 1",
        "rank 3 (host c) has another y: 0 instead of none",
    ]
    assert differences([{"x": "1"}, {"x": "2"}], ["a", "a"]) == ["rank 1 (host a) has another x: 2 instead of 1"]
    many = [{}, {str(number): "1" for number in range(100)}]
    assert len(differences(many, ["a", "b"])) < 12
    assert differences([{"x": "1"}] * 4096, ["a"] * 4096) == []


def test_all_options_but_paths_of_inputs_are_compared(corpus: Path) -> None:
    config = config_of(corpus)
    names = {name for section in to_dict(config).values() if isinstance(section, dict) for name in section}
    facts = configuration_facts(config)
    assert set(facts) >= {f"--{name.replace('_', '-')}" for name in names - MAY_DIFFER}
    model = dataclasses.replace(config.model, hidden_size=64)
    changed = configuration_facts(dataclasses.replace(config, model=model))
    assert {name for name in facts if facts[name] != changed[name]} == {"--hidden-size"}


def test_the_code_is_all_of_the_package_with_what_is_compiled() -> None:
    names = set(code_facts("pretrain_bert.py"))
    assert {"code in megatron/errors.py", "code in megatron/mpu/group.py", "code in pretrain_bert.py"} <= names
    assert any(name.startswith("code in megatron/_C") for name in names)
