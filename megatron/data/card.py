"""The data card, `PREFIX.json`: what a dataset holds and how it was made; the same for any number of workers."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import megatron
from megatron.data.cleaning import Removed
from megatron.data.encode import Counts
from megatron.data.preprocess_config import PreprocessConfig
from megatron.data.tokenizer import Tokenizer
from megatron.errors import UserError
from megatron.files import write_file

Card = dict[str, Any]
IDENTITY = {"key": "--json-keys", "vocab_size": "vocabulary size", "vocabulary_hash": "vocabulary"}
"""What datasets must agree in to be merged, and its name for a reader."""


def make_card(
    config: PreprocessConfig,
    key: str,
    tokenizer: Tokenizer,
    counts: Counts,
    removed: Removed,
    skipped: int,
    files: Sequence[str],
) -> Card:
    """The card of a run, or of a part of it, for one of its keys."""
    return _card(
        counts,
        removed,
        skipped_lines=skipped,
        key=key,
        vocab_size=tokenizer.vocab_size,
        vocabulary_hash=tokenizer.vocabulary_hash,
        options=config.recipe(),
        versions=versions(config),
        part=config.shard,
        surveyed=f"each of {config.part[1]} parts" if config.part and config.needs_survey else None,
        files=files,
    )


def versions(config: PreprocessConfig) -> dict[str, str]:
    """Versions of the code that decides what is written."""
    packages = ["numpy", "regex"]
    packages += ["sentencepiece"] if config.tokenizer_model is not None else ["tokenizers"]
    packages += [config.segmenter] if config.segmenter != "none" else []
    return {"megatron": megatron.__version__} | {package: importlib.metadata.version(package) for package in packages}


def merge_cards(cards: Mapping[str, Card]) -> Card:
    """The card of datasets one after the other, given by prefix; that of one run, if they are all the parts of one.

    Raises `UserError` where they differ in what they must share, or a part of a run is missing or out of place.
    """
    first_prefix, first = next(iter(cards.items()))
    for prefix, card in cards.items():
        for name, label in IDENTITY.items():
            if card[name] != first[name]:
                raise UserError(
                    f"{prefix} does not go with {first_prefix}: another {label} ({card[name]!r}, {first[name]!r})"
                )
    _check_parts(cards)
    counts, removed = Counts(), Removed()
    for card in cards.values():
        removed.add(Removed(**card["removed"]))
        counts.add(Counts(**{entry.name: card[entry.name] for entry in fields(Counts)}))
    return _card(
        counts,
        removed,
        skipped_lines=sum(card["skipped_lines"] for card in cards.values()),
        **{name: first[name] for name in IDENTITY},
        options=_shared([card["options"] for card in cards.values()]),
        versions=_shared([card["versions"] for card in cards.values()]),
        part=None,
        surveyed=first.get("surveyed"),
        files=merged_files([card["files"] for card in cards.values()]),
    )


def merged_files(tables: Sequence[Sequence[str]]) -> list[str]:
    """The files of several cards, each once, in order of their first appearance."""
    return list(dict.fromkeys(file for table in tables for file in table))


def read_card(prefix: str) -> Card | None:
    """The card of a dataset; None where it has none. Raises `UserError` for one that was not written here."""
    path = Path(f"{prefix}.json")
    try:
        card = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable data card ({error}): remove it or preprocess again") from None
    wanted = {
        *IDENTITY,
        *(entry.name for entry in fields(Counts)),
        "skipped_lines",
        "removed",
        "options",
        "versions",
        "files",
    }
    missing = sorted(wanted - set(card)) if isinstance(card, dict) else sorted(wanted)
    if missing:
        raise UserError(f"{path} is no complete data card (no {missing[0]!r}): remove it or preprocess again")
    return card


def write_card(prefix: str, card: Card) -> None:
    """Raises `UserError` where it cannot be written."""
    write_file(Path(f"{prefix}.json"), (json.dumps(card, ensure_ascii=False, indent=2) + "\n").encode())


def summary(prefix: str, card: Card) -> str:
    """A card in a line."""
    return (
        f"{prefix}: {card['documents']:,} documents, {card['sentences']:,} sentences, {card['tokens']:,} tokens, "
        f"{card['mean_sentence_length']:.1f} tokens a sentence, {100 * card['unknown_rate']:.3f} % [UNK], "
        f"{100 * card['multi_character_word_share']:.1f} % of words longer than a character, "
        f"{card['skipped_lines']:,} lines skipped"
        + "".join(f", {count:,} {name.replace('_', ' ')} removed" for name, count in card["removed"].items() if count)
    )


def _card(
    counts: Counts,
    removed: Removed,
    *,
    key: str,
    skipped_lines: int,
    vocab_size: int,
    vocabulary_hash: str,
    options: Mapping[str, Any],
    versions: Mapping[str, Any],
    part: str | None,
    surveyed: str | None,
    files: Sequence[str],
) -> Card:
    return {
        "key": key,
        **asdict(counts),
        "skipped_lines": skipped_lines,
        "removed": asdict(removed),
        "unknown_rate": counts.unknown_tokens / counts.tokens,
        "mean_sentence_length": counts.tokens / counts.sentences,
        "mean_document_length": counts.tokens / counts.documents,
        "mean_sentences_per_document": counts.sentences / counts.documents,
        "multi_character_word_share": counts.multi_character_words / counts.words,
        "vocab_size": vocab_size,
        "vocabulary_hash": vocabulary_hash,
        "options": dict(options),
        "versions": dict(versions),
        **({} if part is None else {"part": part}),
        # What duplicates and boilerplate were looked for in, if not in all of the input.
        **({} if surveyed is None else {"surveyed": surveyed}),
        "files": list(files),
    }


def _shared(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that are the same in all."""
    return {name: value for name, value in tables[0].items() if all(name in t and t[name] == value for t in tables[1:])}


def _check_parts(cards: Mapping[str, Card]) -> None:
    """Parts of a run must all be there, in order: one that is missing would go unnoticed."""
    parts = {prefix: str(card["part"]) for prefix, card in cards.items() if "part" in card}
    if not parts:
        return
    number = next(iter(parts.values())).partition("/")[2]
    wanted = [f"{i}/{number}" for i in range(1, int(number) + 1)]
    if len(parts) == len(cards) and list(parts.values()) == wanted:
        return
    missing = [part for part in wanted if part not in parts.values()]
    problem = f"part {', '.join(missing[:8])} is missing" if missing else "they are not in order, or not alone"
    raise UserError(
        f"{next(iter(parts))} is part {next(iter(parts.values()))} of a run: merge its {number} parts in order, and "
        f"nothing else, first ({problem})"
    )
