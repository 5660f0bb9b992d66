"""Tagging: characters to tokens and back, and whole runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.encode import IGNORED, Encoded
from megatron.tasks.finetune import finetune
from megatron.tasks.kinds.tagging import TAGGING, TaggedText, cuts
from megatron.tasks.kinds.tags import Entity, tag_set
from megatron.tasks.sets.tagging import TAGGING_TASKS
from megatron.tasks.table import find_task
from tests.tasks.tiny import CHARACTERS, TOKENS, metrics, write_checkpoint, write_entities

SINGLE = ParallelContext.single()
TASK = dataclasses.replace(find_task("msra_ner"), labels=tag_set(("LOC", "PER"), "BIO"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Has pieces that merge characters ("ab", "2020"), and in lower case drops accents and takes syllables apart."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    jamo = ("\u1112", "##\u1161", "##\u11ab")
    tokens = (*TOKENS, "a", "b", "ab", "##b", "2020", "2", "##0", *jamo)
    path.write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return load_tokenizer("BertWordPieceLowerCase", vocab_file=path)


def gold_outputs(encoded: Encoded, tags: int) -> np.ndarray:
    """The labels as one-hot outputs; noise where there is none."""
    outputs = np.random.default_rng(0).random((len(encoded.tokens), tags), dtype=np.float32)
    labelled = encoded.labels != IGNORED
    outputs[labelled] = np.eye(tags, dtype=np.float32)[encoded.labels[labelled]]
    return outputs


@st.composite
def tagged_texts(draw: st.DrawFn) -> TaggedText:
    """Texts with entities that do not overlap; half of the characters mean something to the tokenizer."""
    character = st.sampled_from("天地人ab20 [CLS]\u3000\x00\u0301한é，。\ud800") | st.characters()
    text = draw(st.text(character, max_size=40))
    entities, place = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=6)):
        first, last = place + gap, place + gap + size - 1
        if last < len(text):
            entities.append(Entity(first, last, draw(st.sampled_from(["LOC", "PER"]))))
            place = last + 1
    return TaggedText(text, tuple(entities), 0)


@given(st.lists(tagged_texts(), min_size=1, max_size=4), st.integers(8, 20), st.sampled_from(["BIO", "BMES", "BIOES"]))
def test_gold_tags_decode_to_the_gold_entities(
    tokenizer: Tokenizer, examples: list[TaggedText], seq_length: int, scheme: str
) -> None:
    task = dataclasses.replace(TASK, labels=tag_set(("LOC", "PER"), scheme))  # type: ignore[arg-type]
    encoded = TAGGING.encode(task, examples, tokenizer, seq_length)
    found = TAGGING.decode(task, examples, encoded, gold_outputs(encoded, len(task.labels)))
    assert found == [example.entities for example in examples]

    assert encoded.lengths.max() <= seq_length
    assert encoded.places is not None and encoded.examples is not None
    assert encoded.count(np.arange(encoded.num_rows)) == sum(len(example.text) for example in examples)
    for row in range(encoded.num_rows):
        places = encoded.places[encoded.offsets[row] : encoded.offsets[row + 1]]
        assert places[0].tolist() == places[-1].tolist() == [-1, -1]
        assert (places[1:-1, 1] == places[1:-1, 0] + 1).all()
    for number, example in enumerate(examples):
        of_example = np.repeat(encoded.examples, np.diff(encoded.offsets)) == number
        stands_for = encoded.places[of_example & (encoded.places[:, 0] >= 0), 0]
        assert stands_for.tolist() == list(range(len(example.text)))


@pytest.mark.parametrize(
    ("name", "file"),
    [("cluener2020", "CLUENER2020/dev.json.gz"), ("peopledaily_ner", "PeopleDaily_NER/example.dev.gz")],
)
def test_nothing_is_lost_of_real_texts(tokenizer: Tokenizer, shared_data: Path, name: str, file: str) -> None:
    task = find_task(name)
    examples = task.read(task, shared_data / "tasks" / file, "dev")
    encoded = TAGGING.encode(task, examples, tokenizer, 128)
    assert (encoded.num_rows > len(examples)) == (name == "peopledaily_ner")  # of 568 characters at most
    found = TAGGING.decode(task, examples, encoded, gold_outputs(encoded, len(task.labels)))
    assert next(iter(task.scores(task, examples, found).values())) == 1


def test_every_character_is_a_token(tokenizer: Tokenizer) -> None:
    example = TaggedText("A天 é한b20[", (Entity(1, 3, "LOC"), Entity(5, 7, "PER")), 0)
    encoded = TAGGING.encode(TASK, [example, TaggedText("", (), 1)], tokenizer, 16)
    names = [tokenizer.tokens[token] for token in encoded.tokens]
    unknown = "[UNK]"
    assert names[:12] == ["[CLS]", "a", "天", unknown, unknown, unknown, "b", "2", "0", "[", "[SEP]", "[CLS]"]
    assert encoded.labels[:11].tolist() == [IGNORED, 0, 1, 2, 2, 0, 3, 4, 4, 0, IGNORED]
    assert encoded.batch(np.array([0, 1])).labels[1].tolist() == [IGNORED] * 11


def test_texts_of_test_files_have_no_labels(tokenizer: Tokenizer) -> None:
    encoded = TAGGING.encode(TASK, [TaggedText("天地" * 20, None, 0)], tokenizer, 16)
    assert (encoded.labels == IGNORED).all() and encoded.num_rows == 3 and encoded.truncated == 0
    assert encoded.examples is not None and encoded.examples.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("天地人山水火", ["天地人山水火"]),
        ("天地人山水火木金", ["天地人山水火", "木金"]),
        ("天地人山，水火", ["天地人山，", "水火"]),
        ("天地人。山，水火", ["天地人。", "山，水火"]),
        ("天。地人山水火", ["天。地人山水", "火"]),
        ("天地人山水。火", ["天地人山水。", "火"]),
    ],
)
def test_long_texts_are_cut_after_punctuation(text: str, parts: list[str]) -> None:
    ends = cuts(text, 6)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == parts


def test_loss_and_hits_count_characters_alone(tokenizer: Tokenizer) -> None:
    examples = [TaggedText("天地人", (Entity(0, 1, "LOC"),), 0), TaggedText("山", (), 1)]
    batch = TAGGING.encode(TASK, examples, tokenizer, 16).batch(np.array([0, 1]))
    outputs = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(3))
    outputs[0, 1, 1] = outputs[1, 1, 0] = 9.0  # right
    outputs[0, 2, 1] = outputs[0, 3, 1] = 9.0  # wrong
    outputs[1, 3:, :] = torch.inf  # padding
    total, hits = TAGGING.loss(TASK, outputs, batch)
    probabilities = outputs.log_softmax(2)
    expected = -(probabilities[0, 1, 1] + probabilities[0, 2, 2] + probabilities[0, 3, 0] + probabilities[1, 1, 0])
    assert total.item() == pytest.approx(expected.item())
    assert hits.item() == 2


def run(checkpoint: Path, data: Path, out: Path, *, task: str = "tagging", **tuning: object) -> FinetuneConfig:
    values = {"epochs": 1, "global_batch_size": 8, "lr": 5e-3, "seq_length": 24, **tuning}
    config = FinetuneConfig(
        task=TaskConfig(task=task, data_dir=str(data), predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(out)),
        tuning=TuningConfig(**values),  # type: ignore[arg-type]
    )
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_interval=1))
    finetune(config, SINGLE)
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint")


def test_entities_are_learned_and_the_best_checkpoint_gives_the_same_again(checkpoint: Path, tmp_path: Path) -> None:
    data = write_entities(tmp_path / "data", train=120, dev=30)
    config = run(checkpoint, data, tmp_path / "out", epochs=3, lr=1e-2)
    dev = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    records = [record for record in metrics(tmp_path / "out") if record["split"] == "dev"]
    assert len(records) == 3 and max(record["f1"] for record in records) == dev["f1"] > 0.9
    assert {"f1", "precision", "recall", "macro_f1", "f1_LOC", "f1_PER"} <= set(dev)
    rows = [json.loads(line) for line in (tmp_path / "out" / "tagging_predict.json").read_text().splitlines()]
    texts = ["".join(line.split(" ")[0] for line in text.splitlines()) for text in texts_of(data / "test.txt")]
    assert [row["id"] for row in rows] == list(range(len(texts)))
    for row, text in zip(rows, texts, strict=True):
        for kind, mentions in row["label"].items():
            assert kind in ("LOC", "PER")
            assert all(text[a : b + 1] == mention for mention, spans in mentions.items() for a, b in spans)

    again = dataclasses.replace(
        config,
        source=ModelSourceConfig(
            pretrained_checkpoint=str(tmp_path / "out" / "best"), output_dir=str(tmp_path / "again"), eval_only=True
        ),
        tuning=TuningConfig(global_batch_size=8),
    )
    finetune(again, SINGLE)
    evaluated = json.loads((tmp_path / "again" / "dev_metrics.json").read_text())
    assert {key: dev[key] for key in evaluated} == evaluated
    names = [tmp_path / folder / "tagging_predict.json" for folder in ("out", "again")]
    assert names[0].read_bytes() == names[1].read_bytes()


def texts_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip("\n").split("\n\n")


def official_file(name: str, types: list[str], *, labelled: bool) -> str:
    """Ten texts in the form of a task, each type in turn."""
    lines = []
    for number in range(10):
        kind, text = types[number % len(types)], CHARACTERS[number : number + 5]
        if name == "cluener2020":
            row = {"id": number * 3, "text": text, "label": {kind: {text[1:3]: [[1, 2]]}}}
            lines.append(json.dumps(row if labelled else {"id": row["id"], "text": text}, ensure_ascii=False))
            continue
        end = "E" if name == "resume_ner" else "I"
        tags = ["O", f"B-{kind}", f"{end}-{kind}", "O", "O"]
        separator, digit = ("\t", "0") if name == "weibo_ner" else (" ", "")
        lines += [f"{character}{digit}{separator}{tag}" for character, tag in zip(text, tags, strict=True)] + [""]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", [task.name for task in TAGGING_TASKS if task.complete is None])
def test_every_task_trains_and_writes_its_submission_files(checkpoint: Path, tmp_path: Path, name: str) -> None:
    task = find_task(name)
    types = sorted({tag.partition("-")[2] for tag in task.labels if tag != "O"})
    (tmp_path / "data").mkdir()
    test_file, submission = task.test_files[0]
    for file in (task.train_files[0], task.dev_files[0], test_file):
        content = official_file(name, types, labelled=file != test_file)
        (tmp_path / "data" / file).write_text(content, encoding="utf-8")
    run(checkpoint, tmp_path / "data", tmp_path / "out", task=name.upper())
    dev = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    assert next(key for key in dev if key != "task") == ("macro_f1" if name == "cluener2020" else "f1")
    assert dev["examples"] == 10 and set(types) <= {key[3:] for key in dev}
    rows = [json.loads(line) for line in (tmp_path / "out" / submission).read_text().splitlines()]
    step = 3 if name == "cluener2020" else 1
    assert [row["id"] for row in rows] == list(range(0, 10 * step, step))
    assert all(set(row) == {"id", "label"} and set(row["label"]) <= set(types) for row in rows)
