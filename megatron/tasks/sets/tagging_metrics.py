"""Scores of entities: right are those whose type, first and last character are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from megatron.tasks.kinds.tags import Entity

if TYPE_CHECKING:
    from megatron.tasks.kinds.tagging import TaggedText
    from megatron.tasks.task import Task


def entity_scores(gold: Sequence[Iterable[Entity]], found: Sequence[Iterable[Entity]]) -> dict[str, float]:
    """Scores over the entities of all texts, each counted once in its text.

    f1, precision and recall are over all entities (micro); macro_f1 is the mean F1 of the types that occur in gold or
    found, which follow as f1_TYPE. 0 where there is nothing to divide by.
    """
    wanted, given, right = (Counter[str]() for _ in range(3))
    for of_gold, of_found in zip(map(set, gold), map(set, found), strict=True):
        for counts, entities in ((wanted, of_gold), (given, of_found), (right, of_gold & of_found)):
            counts.update(entity.type for entity in entities)
    types = sorted({*wanted, *given})
    per_type = {f"f1_{type_}": _ratio(2 * right[type_], wanted[type_] + given[type_]) for type_ in types}
    return {
        "f1": _ratio(2 * right.total(), wanted.total() + given.total()),
        "precision": _ratio(right.total(), given.total()),
        "recall": _ratio(right.total(), wanted.total()),
        "macro_f1": _ratio(sum(per_type.values()), len(types)),
        **per_type,
    }


def micro_scores(
    task: Task, examples: Sequence[TaggedText], predictions: Sequence[Sequence[Entity]]
) -> dict[str, float]:
    """`entity_scores`, first the F1 over all entities."""
    del task
    return entity_scores([example.entities or () for example in examples], predictions)


def macro_scores(
    task: Task, examples: Sequence[TaggedText], predictions: Sequence[Sequence[Entity]]
) -> dict[str, float]:
    """`entity_scores`, first the mean F1 of types: the figure of CLUENER2020's board."""
    scores = micro_scores(task, examples, predictions)
    return {"macro_f1": scores["macro_f1"], **scores}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
