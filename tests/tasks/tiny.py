"""A tiny random checkpoint and made-up task files, for runs of the whole command."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from megatron.checkpoint import json_bytes, save_checkpoint
from megatron.config import ModelConfig, to_dict
from megatron.model import BertForPreTraining
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces
from megatron.tasks.config import FinetuneConfig
from tests.commands import run

CHARACTERS = "天地人山水火木金日月风云花鸟鱼虫书画琴棋"
TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "_", "[", "]", "0", "1")


def write_checkpoint(
    folder: Path, *, binary_head: bool = True, architecture: str = "megatron-bert", characters: str = ""
) -> Path:
    """A checkpoint of random weights with 2 layers of width 32 and 64 positions. characters: more tokens."""
    tokens = tuple(dict.fromkeys((*TOKENS, *characters)))
    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        ffn_hidden_size=64,
        max_position_embeddings=64,
        vocab_size=max(32, len(tokens)),
        init_method_std=0.1,
        bert_no_binary_head=not binary_head,
    )
    context = ParallelContext.single()
    model = BertForPreTraining(config, context)
    initialize(model, 1)
    save_checkpoint(
        folder,
        0,
        model=parameter_pieces(model.named_parameters()),
        optimizer=[],
        files={
            "config.json": json_bytes({"model": to_dict(config), "data": {"tokenizer_type": "BertWordPieceCase"}}),
            "train_state.json": json_bytes({}),
            "vocab.txt": "".join(token + "\n" for token in tokens).encode(),
        },
        context=context,
    )
    return folder


def write_sentiment(folder: Path, *, train: int = 90, dev: int = 40, test: int = 12) -> Path:
    """Files for --task classification: a text that begins with one of the first five characters is "good"."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        lines = ["id\tlabel\ttext" if name == "test" else "label\ttext"]
        for row in range(count):
            good = rng.random() < 0.5
            text = rng.choice(CHARACTERS[:5] if good else CHARACTERS[5:10])
            text += "".join(rng.choices(CHARACTERS[10:], k=rng.randint(1, 20)))
            lines.append(f"{1000 - row}\t?\t{text}" if name == "test" else f"{'good' if good else 'bad'}\t{text}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_entities(folder: Path, *, train: int = 90, dev: int = 40, test: int = 12) -> Path:
    """Files for --task tagging: 天 and the 地 after it are a LOC, 山 is a PER; a third of the texts is a long one."""
    rng = random.Random(6)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["天地", "天地地", "山", *CHARACTERS[5:]]
    tags = {"天": "B-LOC", "地": "I-LOC", "山": "B-PER"}
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        texts = ["".join(rng.choices(words, k=rng.choice((3, 9, 40)))) for _ in range(count)]
        lines = ["".join(f"{character} {tags.get(character, 'O')}\n" for character in text) for text in texts]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_c3(folder: Path, *, train: int) -> Path:
    """Files of c3. The right one of two to four choices has the first character of all."""
    rng = random.Random(4)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("d-train", train), ("m-train", 5), ("d-dev", 12), ("m-dev", 6), ("test1.1", 7)):
        documents = []
        for number in range(count):
            choices = ["".join(rng.choices(CHARACTERS[1:], k=rng.randint(1, 3))) for _ in range(rng.randint(2, 4))]
            right = rng.randrange(len(choices))
            choices[right] = CHARACTERS[0] + choices[right]
            question = {"question": CHARACTERS[5:8], "choice": choices}
            question |= {"id": 900 - number} if name == "test1.1" else {"answer": choices[right]}
            documents.append([[CHARACTERS[8 : 8 + rng.randint(1, 9)]], [question], str(number)])
        (folder / f"{name}.json").write_text(json.dumps(documents, ensure_ascii=False), encoding="utf-8")
    return folder


def write_reading(path: Path, prefix: str, *, contexts: int, unanswerable: bool = False) -> Path:
    """Contexts of two questions whose answer is 书画, which every third one lacks where it may be unanswerable."""
    rng = random.Random(prefix)
    paragraphs = []
    for number in range(contexts):
        before, after = (rng.choices(CHARACTERS[:16], k=rng.randint(2, 40)) for _ in range(2))
        there = not unanswerable or number % 3 > 0
        context = "".join([*before, *("书画" if there else ""), *after])
        answer = {"text": "书画", "answer_start": len(before)}
        qas = [
            {
                "question": "琴" * (1 + 2 * k),
                "id": f"{prefix}_{number}_QUERY_{k}",
                "answers": [answer] * (1 if prefix == "TRAIN" else 3) if there else [],
                **({"is_impossible": not there} if unanswerable else {}),
            }
            for k in range(2)
        ]
        paragraphs.append({"id": f"{prefix}_{number}", "context": context, "qas": qas})
    text = json.dumps({"version": "v1.0", "data": [{"paragraphs": [part]} for part in paragraphs]}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_bustm(folder: Path) -> Path:
    """Files of fewclue-bustm, whose lines end as its do."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train_0", 31), ("dev_0", 20), ("test", 9)):
        lines = [
            {"id": n, "sentence1": CHARACTERS[n % 9 : 14], "sentence2": CHARACTERS[n % 7 :], "label": str(n % 2)}
            for n in range(rows)
        ]
        (folder / f"{name}.json").write_bytes("".join(json.dumps(line) + "\r\n" for line in lines).encode())
    return folder


def run_command(*arguments: object, processes: int = 1) -> CompletedProcess[str]:
    """Run finetune_clue.py as a user does, under torchrun for more than one process."""
    return run("finetune_clue.py", *arguments, processes=processes, seconds=240)


def metrics(output: Path) -> list[dict[str, float]]:
    """The records of a run."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def changed(config: FinetuneConfig, section: str, **values: Any) -> FinetuneConfig:
    """A configuration with other values in one of its sections."""
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})
