"""Tasks as filling blanks: the head of masked words says which candidate fits best (PET, Schick and Schütze, 2021)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, kept_lengths
from megatron.tasks.kinds.classification import (
    Classified,
    TextExample,
    label_and_probabilities,
    label_loss,
    likeliest,
)
from megatron.tasks.readers import shortened
from megatron.tasks.task import Kind, Prompt, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

BLANK = "[MASK]"


@dataclass(frozen=True, slots=True)
class ClozeExample:
    """As `TextExample`, with what may stand in the blanks; the label is the number of the right one."""

    texts: tuple[str, ...]
    label: int | None
    id: int | str
    candidates: tuple[str, ...]
    group: str = ""


def with_prompt(task: Task, saved: dict[str, Any] | None = None) -> Task:
    """The task done by filling the blanks of its pattern.

    saved: the description of the prompt in a checkpoint that is evaluated; its pattern and words hold for it. Raises
    `UserError` for a task without a pattern.
    """
    prompt = task.prompt
    if prompt is None:
        raise UserError(f"--prompt and --zero-shot are for tasks with a pattern, those of FewCLUE, not for {task.name}")
    if saved is not None:
        prompt = dataclasses.replace(prompt, pattern=saved["pattern"], words=tuple(saved["words"]))
    return dataclasses.replace(
        task,
        kind=PROMPTS,
        prompt=prompt,
        read=prompt.read or task.read,
        parse=prompt.parse or task.parse,
        scores=prompt.scores or task.scores,
        submission=prompt.submission or task.submission,
        defaults=prompt.defaults,
    )


def prompt_description(task: Task) -> dict[str, Any]:
    """What a checkpoint says about the prompt it was tuned with."""
    prompt = _prompt(task)
    return {"pattern": prompt.pattern, "words": list(prompt.words)}


def _prompt(task: Task) -> Prompt:
    assert task.prompt is not None
    return task.prompt


def _encode(
    task: Task, examples: Sequence[TextExample | ClozeExample], tokenizer: Tokenizer, seq_length: int
) -> Encoded:
    """[CLS], the pattern with its texts, [SEP], all of type 0, of at most seq_length tokens.

    Texts are cut as `kept_lengths` says, the pattern never: a text before the blanks loses its beginning, one after
    them its end, so that what is nearest to them stays. Raises `UserError` where it leaves no room for texts.
    """
    pattern = _prompt(task).pattern
    pieces = [piece for piece in re.split(r"(\[MASK\]|\{[01]\})", pattern) if piece]
    texts_at = {index: int(piece[1]) for index, piece in enumerate(pieces) if re.fullmatch(r"\{[01]\}", piece)}
    fixed = {index: tokenizer.encode(piece) for index, piece in enumerate(pieces) if index not in texts_at}
    blanks = pieces.count(BLANK)
    room = seq_length - 2 - sum(len(ids) for ids in fixed.values())
    if room < 1:
        raise UserError(
            f"--seq-length {seq_length} leaves no room for texts: the pattern {pattern} of {task.name} alone has "
            f"{seq_length - room} tokens; give a greater length"
        )
    ids = iter([ids for ids, _ in tokenizer.encode_batch([text for e in examples for text in e.texts])])
    inputs: list[list[int]] = []
    masks = np.zeros((len(examples), blanks), dtype=np.int64)
    truncated = 0
    for row, example in enumerate(examples):
        texts = [next(ids) for _ in example.texts]
        sizes = [len(text) for text in texts]
        kept = kept_lengths(sizes, room, task.truncate)
        truncated += kept != sizes
        tokens, filled = [tokenizer.cls_id], 0
        for index, piece in enumerate(pieces):
            if index in texts_at:
                text, size = texts[texts_at[index]], kept[texts_at[index]]
                tokens += text[:size] if filled else text[len(text) - size :]
                continue
            if piece == BLANK:
                masks[row, filled] = len(tokens)
                filled += 1
            tokens += fixed[index]
        inputs.append([*tokens, tokenizer.sep_id])
    lengths = np.array([len(tokens) for tokens in inputs], dtype=np.int64)
    return Encoded(
        tokens=np.array([token for tokens in inputs for token in tokens], dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        first_lengths=lengths,
        labels=np.array([IGNORED if e.label is None else e.label for e in examples], dtype=np.int64),
        pad_id=tokenizer.pad_id,
        truncated=truncated,
        masks=masks,
        candidates=_candidates(task, examples, tokenizer, blanks),
    )


def _candidates(
    task: Task, examples: Sequence[TextExample | ClozeExample], tokenizer: Tokenizer, blanks: int
) -> np.ndarray:
    """The tokens that may stand in the blanks of each example, int64 [n, candidates, blanks].

    Raises `UserError` for words that this vocabulary cannot put into the blanks: of as many tokens, and of labels known
    ones. A rare idiom may hold unknown characters, as in the published baselines.
    """
    words = _prompt(task).words
    if words:
        for label, word in zip(task.labels, words, strict=True):
            ids = tokenizer.encode(word)
            if len(ids) != blanks or tokenizer.unk_id in ids:
                tokens = " ".join(tokenizer.tokens[i] for i in ids)
                raise UserError(
                    f"{task.name}: the word {word} of label {label} must have {blanks} tokens, but in this vocabulary "
                    f"it is {tokens}; take a checkpoint whose vocabulary holds its characters"
                )
        fixed = np.array([tokenizer.encode(word) for word in words], dtype=np.int64)
        return np.broadcast_to(fixed, (len(examples), *fixed.shape))
    own = [example.candidates for example in examples if isinstance(example, ClozeExample)]
    different = sorted({word for candidates in own for word in candidates})
    found = {word: ids for word, (ids, _) in zip(different, tokenizer.encode_batch(different), strict=True)}
    wrong = [word for word, ids in found.items() if len(ids) != blanks]
    if wrong:
        raise UserError(
            f"{task.name}: candidates must have {blanks} tokens, but in this vocabulary {shortened(wrong)} have other "
            f"numbers of them; take a checkpoint whose vocabulary has a token for each Chinese character"
        )
    return np.array([[found[word] for word in candidates] for candidates in own], dtype=np.int64)


PROMPTS: Kind[Any, Classified] = Kind(
    name="prompts",
    head="masked",
    num_outputs=lambda task: len(task.labels),
    encode=_encode,
    loss=label_loss,
    decode=likeliest,
    as_json=label_and_probabilities,
)
