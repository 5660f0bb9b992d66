"""Questions with choices: token ids, losses, predictions of blanks together, whole runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch

from megatron.mpu.context import ParallelContext
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.encode import Encoded
from megatron.tasks.finetune import finetune
from megatron.tasks.kinds.choices import CHOICES, ChoiceExample
from megatron.tasks.kinds.cloze import CLOZE, Blank, joint_choices, window
from megatron.tasks.table import find_task
from tests.tasks.sets.test_choices import write_lines
from tests.tasks.tiny import CHARACTERS, write_c3, write_checkpoint

C3, CHID = find_task("c3"), find_task("chid")


@dataclass(frozen=True)
class Characters:
    """A tokenizer of code points."""

    tokens: tuple[str, ...] = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[unused1]")
    pad_id: int = 0
    cls_id: int = 1
    sep_id: int = 2
    mask_id: int = 3

    def encode_batch(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [([ord(c) for c in text], [(i, i + 1) for i in range(len(text))]) for text in texts]


def written(encoded: Encoded, number: int) -> str:
    """An input: "^" for [CLS], "$" for [SEP], "M" for [MASK], "U" for [unused1]."""
    ids = encoded.tokens[encoded.offsets[number] : encoded.offsets[number + 1]]
    return "".join({1: "^", 2: "$", 3: "M", 4: "U"}.get(i, chr(i)) for i in ids.tolist())


def blank(*pieces: str, number: int = 0, answer: int | None = 0, row: str = "1", candidates: str = "甲乙丙") -> Blank:
    return Blank(pieces, number, tuple(4 * character for character in candidates), answer, 0, row)


def test_inputs_of_a_question() -> None:
    inputs = tuple(("abcdefgh", "qr", choice) for choice in ("x", "yz"))
    examples = [ChoiceExample(inputs, 2, 1, 0), ChoiceExample(tuple(("a", "q", c) for c in "xy"), 2, None, 1)]
    encoded = CHOICES.encode(C3, examples, Characters(), 12)  # type: ignore[arg-type]
    assert [written(encoded, n) for n in range(4)] == ["^abcde$qr$x$", "^abcd$qr$yz$", "^a$q$x$", "^a$q$y$"]
    assert encoded.first_lengths.tolist() == [7, 6, 3, 3]
    assert (encoded.row_inputs, encoded.num_rows, encoded.truncated) == (2, 2, 1)
    assert encoded.labels.tolist() == [1, -100]


def test_loss_is_cross_entropy_over_choices() -> None:
    rng = np.random.default_rng(2)
    examples = [ChoiceExample((("a", "b"),) * 3, 3, int(answer), 0) for answer in rng.integers(0, 3, 8)]
    encoded = CHOICES.encode(C3, examples, Characters(), 16)  # type: ignore[arg-type]
    rows = np.array([5, 0, 7, 2])
    scores = rng.normal(size=(4, 3))
    loss, hits = CHOICES.loss(C3, torch.tensor(scores.reshape(-1, 1)), encoded.batch(rows))
    answers = encoded.labels[rows]
    assert loss.item() == pytest.approx(-scipy.special.log_softmax(scores, axis=1)[range(4), answers].sum())
    assert hits.item() == (scores.argmax(1) == answers).sum()


def test_choices_that_only_fill_up_are_never_predicted() -> None:
    examples = [ChoiceExample((("a", "b"),) * 4, choices, None, 0) for choices in (2, 3, 4)]
    encoded = CHOICES.encode(C3, examples, Characters(), 16)  # type: ignore[arg-type]
    outputs = np.array([[0, 1, 5, 9], [2, 1, 0, 9], [0, 1, 5, 9]], dtype=np.float32).reshape(-1, 1)
    found = CHOICES.decode(C3, examples, encoded, outputs)
    assert [prediction.choice for prediction in found] == [1, 0, 3]
    assert found[0].probabilities == pytest.approx(scipy.special.softmax([0, 1]))
    assert [len(prediction.probabilities) for prediction in found] == [2, 3, 4]


def test_blanks_together_are_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(1)
    for blanks, candidates in itertools.product(range(1, 5), range(4, 7)):
        scores = rng.normal(size=(blanks, candidates))
        ways = itertools.permutations(range(candidates), blanks)
        best = max(ways, key=lambda way: sum(scores[number, choice] for number, choice in enumerate(way)))
        assert joint_choices(scores).tolist() == list(best)
    more = rng.normal(size=(5, 3))
    assert joint_choices(more).tolist() == more.argmax(1).tolist()
    assert sorted(joint_choices(np.array([[np.nan, 1.0], [np.inf, 2.0]]))) == [0, 1]


def test_blanks_of_a_row_take_each_idiom_once() -> None:
    rows = ["1", "1", "2", "1 of another file"]
    examples = [blank("a", "b", row=row) for row in rows[:3]] + [blank("a", "b", row=rows[3], candidates="甲乙")]
    encoded = CLOZE.encode(CHID, examples, Characters(), 32)  # type: ignore[arg-type]
    scores = np.array([[3, 2, 0], [5, 1, 0], [3, 2, 0], [0, 1, 7]], dtype=np.float32)
    found = CLOZE.decode(CHID, examples, encoded, scores.reshape(-1, 1))
    assert [prediction.choice for prediction in found] == [1, 0, 0, 1]
    assert found[0].probabilities == pytest.approx(scipy.special.softmax(scores[0]))
    assert len(found[3].probabilities) == 2
    assert CHID.scores(CHID, examples, found) == {"accuracy": 0.5, "majority_accuracy": 1.0}


def test_inputs_of_a_blank() -> None:
    pieces = ("一“二”", "三", "四……", "五—")
    examples = [blank(*pieces, number=1, answer=2), blank("", "", candidates="丁戊")]
    encoded = CLOZE.encode(CHID, examples, Characters(), 64)  # type: ignore[arg-type]
    assert written(encoded, 1) == '^乙乙乙乙$一"二"MMMM三U四......MMMM五-$'
    assert [written(encoded, n) for n in (3, 4, 5)] == ["^丁丁丁丁$U$", "^戊戊戊戊$U$", "^无效答案$U$"]
    assert encoded.row_inputs == 3 and encoded.labels.tolist() == [2, 0]
    assert not encoded.batch(np.array([0, 1])).token_types.any()
    assert encoded.truncated == 0
    plain = Characters(tokens=("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    assert written(CLOZE.encode(CHID, examples[1:], plain, 64), 0) == "^丁丁丁丁$M$"  # type: ignore[arg-type]


def test_the_window_is_centred_on_the_blank() -> None:
    left, right = [chr(n) for n in range(97, 110)], [chr(n) for n in range(65, 78)]
    assert [("".join(a), "".join(b)) for a, b in [window(left, right, 6), window(left, right, 7)]] == [
        ("klm", "ABC"),
        ("klm", "ABCD"),
    ]
    assert window(left[:1], right, 6) == (left[:1], right[:5])
    assert window(left, right[:2], 6) == (left[-4:], right[:2])
    assert window(left, right, 0) == ([], [])
    example = blank("".join(left), "".join(right))
    encoded = CLOZE.encode(CHID, [example], Characters(), 14)  # type: ignore[arg-type]
    assert written(encoded, 0) == "^甲甲甲甲$klmUABC$"
    assert encoded.truncated == 1
    encoded = CLOZE.encode(CHID, [dataclasses.replace(example, candidates=("长" * 99, "短"))], Characters(), 8)  # type: ignore[arg-type]
    assert [written(encoded, n) for n in range(2)] == ["^长长长长$U$", "^短$U$"]


def write_chid(folder: Path) -> Path:
    """Rows of three blanks and ten candidates; the blank that follows a character has an idiom of that character."""
    rng, tag = random.Random(4), 0
    for name, count in (("train", 10), ("dev", 4), ("test1.1", 3)):
        rows, answers = [], {}
        for _ in range(count):
            idioms = rng.sample(CHARACTERS[:10], 10)
            passages = []
            for place in rng.sample(range(10), 3):
                tag += 1
                answers[f"#idiom{tag:06d}#"] = place
                passages.append(f"{CHARACTERS[12]}{idioms[place]}#idiom{tag:06d}#{CHARACTERS[13]}")
            content = [passages[0] + passages[1], passages[2]]
            rows.append({"candidates": [4 * idiom for idiom in idioms], "content": content})
        write_lines(folder / f"{name}.json", *rows)
        if name != "test1.1":
            write_lines(folder / f"{name}_answer.json", answers)
    return folder


def configured(task: str, data: Path, checkpoint: Path, output: Path, **tuning: int | float) -> FinetuneConfig:
    config = FinetuneConfig(
        task=TaskConfig(task=task, data_dir=str(data), predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(output)),
        tuning=TuningConfig(lr=3e-3, seq_length=40, **tuning),  # type: ignore[arg-type]
    )
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_interval=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("choices") / "checkpoint")


def test_a_run_of_c3_learns_and_predicts(checkpoint: Path, tmp_path: Path) -> None:
    data = write_c3(tmp_path / "data", train=60)
    config = configured("c3", data, checkpoint, tmp_path / "out", epochs=8, global_batch_size=8)
    finetune(config, ParallelContext.single())
    scores = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    assert scores["examples"] == 18 and scores["accuracy"] == 1.0 > scores["majority_accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "c311_predict.json").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(900, 893, -1))
    assert all(type(line["label"]) is int and 0 <= line["label"] < 4 for line in lines)
    again = dataclasses.replace(
        config,
        source=ModelSourceConfig(
            pretrained_checkpoint=str(tmp_path / "out" / "best"), eval_only=True, output_dir=str(tmp_path / "again")
        ),
    )
    finetune(again, ParallelContext.single())
    name = "c311_predict.json"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_run_of_chid_takes_each_idiom_once(checkpoint: Path, tmp_path: Path) -> None:
    data = write_chid(tmp_path / "data")
    finetune(
        configured("chid", data, checkpoint, tmp_path / "out", epochs=2, global_batch_size=8), ParallelContext.single()
    )
    scores = json.loads((tmp_path / "out" / "dev_metrics.json").read_text())
    assert scores["examples"] == 12
    found = json.loads((tmp_path / "out" / "chid11_predict.json").read_text())
    tags = list(found)
    assert tags == [f"#idiom{number:06d}#" for number in range(43, 52)]
    for row in range(3):
        assert len({found[tag] for tag in tags[3 * row : 3 * row + 3]}) == 3
