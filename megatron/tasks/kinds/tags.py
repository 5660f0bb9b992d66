"""Entities of a text, and the tags of its characters that spell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

OUTSIDE = "O"
"""The tag of what is in no entity."""
Scheme = Literal["BIO", "BMES", "BIOES"]
_PREFIXES: dict[Scheme, str] = {"BIO": "BI", "BMES": "BMES", "BIOES": "BIES"}


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """An entity: its first and last character (code points, the last included) and its type."""

    first: int
    last: int
    type: str


def tag_set(types: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """All tags of a scheme: "O", then those of each type."""
    return (OUTSIDE, *(f"{prefix}-{type_}" for type_ in types for prefix in _PREFIXES[scheme]))


def types_of(tags: Sequence[str]) -> tuple[str, ...]:
    """The types of entities of a tag set, in its order."""
    return tuple(dict.fromkeys(tag.partition("-")[2] for tag in tags if tag != OUTSIDE))


def scheme_of(tags: Iterable[str]) -> Scheme | None:
    """The scheme that has all these tags; None where there is none. Tags of several schemes are of the first."""
    used = {tag.partition("-")[0] for tag in tags if tag != OUTSIDE}
    return next((scheme for scheme, prefixes in _PREFIXES.items() if used <= set(prefixes)), None)


def spell(entities: Sequence[Entity], length: int, tags: Sequence[str]) -> list[str]:
    """The tags of `length` characters, by the scheme of a tag set.

    Tags cannot say that entities overlap: of such, the one that begins first is spelled, of these the longest.
    """
    prefixes = {tag.partition("-")[0] for tag in tags}
    inside = "M" if "M" in prefixes else "I"
    end = "E" if "E" in prefixes else inside
    alone = "S" if "S" in prefixes else "B"
    spelled = [OUTSIDE] * length
    for entity in sorted(entities, key=lambda entity: (entity.first, -entity.last, entity.type)):
        places = slice(entity.first, entity.last + 1)
        if any(tag != OUTSIDE for tag in spelled[places]):
            continue
        size = entity.last - entity.first + 1
        letters = ["B", *inside * (size - 2), end] if size > 1 else [alone]
        spelled[places] = [f"{letter}-{entity.type}" for letter in letters]
    return spelled


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities that the tags of characters spell, in their order.

    As conlleval (Tjong Kim Sang and Buchholz, 2000): an I-, M- or E- tag that continues no entity of its type begins
    one, so that no tag is without meaning.
    """
    found: list[Entity] = []
    is_open = False
    for place, tag in enumerate(tags):
        letter, _, type_ = tag.partition("-")
        if tag == OUTSIDE:
            is_open = False
            continue
        if letter in "BS" or not is_open or found[-1].type != type_:
            found.append(Entity(place, place, type_))
        else:
            found[-1] = Entity(found[-1].first, place, type_)
        is_open = letter not in "ES"
    return found
