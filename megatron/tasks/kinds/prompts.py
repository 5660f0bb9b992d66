"""Tasks as filling blanks: the head of masked words says which candidate fits best (PET, Schick and Schütze, 2021)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron.errors import UserError
from megatron.tasks.encode import IGNORED, Encoded, kept_lengths
from megatron.tasks.kinds.choices import Chosen
from megatron.tasks.kinds.classification import (
    Classified,
    TextExample,
    label_and_probabilities,
    label_loss,
    likeliest,
)
from megatron.tasks.kinds.cloze import Blank, decode_jointly
from megatron.tasks.readers import shortened
from megatron.tasks.task import Kind, Prompt, Task

if TYPE_CHECKING:
    from megatron.data.tokenizer import Tokenizer

BLANK = "[MASK]"


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
    kind: Kind[Any, Any] = PROMPTS if prompt.words else CLOZE_PROMPTS
    return dataclasses.replace(
        task,
        kind=kind,
        prompt=prompt,
        read=prompt.read or task.read,
        parse=prompt.parse or task.parse,
        defaults=prompt.defaults,
    )


def prompt_description(task: Task) -> dict[str, Any]:
    """What a checkpoint says about the prompt it was tuned with."""
    prompt = _prompt(task)
    return {"pattern": prompt.pattern, "words": list(prompt.words)}


def _prompt(task: Task) -> Prompt:
    assert task.prompt is not None
    return task.prompt


def _encode(task: Task, examples: Sequence[TextExample], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    """The examples in the pattern of their task; candidates are the words of its labels."""
    words = _words(task, tokenizer)
    return _fill(
        task,
        [example.texts for example in examples],
        [example.label for example in examples],
        np.broadcast_to(words, (len(examples), *words.shape)),
        tokenizer,
        seq_length,
    )


def _encode_blanks(task: Task, examples: Sequence[Blank], tokenizer: Tokenizer, seq_length: int) -> Encoded:
    """Passages of one blank in the pattern of their task; candidates are their own."""
    return _fill(
        task,
        [example.pieces for example in examples],
        [example.answer for example in examples],
        _own_candidates(task, examples, tokenizer),
        tokenizer,
        seq_length,
    )


def _fill(
    task: Task,
    texts_of: Sequence[tuple[str, ...]],
    labels: Sequence[int | None],
    candidates: np.ndarray,
    tokenizer: Tokenizer,
    seq_length: int,
) -> Encoded:
    """[CLS], the pattern with its texts, [SEP], all of type 0, of at most seq_length tokens.

    Texts are cut as `kept_lengths` says, the pattern never: a text before the blanks loses its beginning, one after
    them its end, so that what is nearest to them stays. Raises `UserError` where it leaves no room for texts.
    """
    pattern = _prompt(task).pattern
    pieces = [piece for piece in re.split(r"(\[MASK\]|\{[01]\})", pattern) if piece]
    texts_at = {index: int(piece[1]) for index, piece in enumerate(pieces) if re.fullmatch(r"\{[01]\}", piece)}
    fixed = {index: tokenizer.encode(piece) for index, piece in enumerate(pieces) if index not in texts_at}
    room = seq_length - 2 - sum(len(ids) for ids in fixed.values())
    if room < 1:
        raise UserError(
            f"--seq-length {seq_length} leaves no room for texts: the pattern {pattern} of {task.name} alone has "
            f"{seq_length - room} tokens; give a greater length"
        )
    ids = iter([ids for ids, _ in tokenizer.encode_batch([text for texts in texts_of for text in texts])])
    inputs: list[list[int]] = []
    masks = np.zeros((len(texts_of), _num_blanks(task)), dtype=np.int64)
    truncated = 0
    for row, count in enumerate(map(len, texts_of)):
        texts = [next(ids) for _ in range(count)]
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
        labels=np.array([IGNORED if label is None else label for label in labels], dtype=np.int64),
        pad_id=tokenizer.pad_id,
        truncated=truncated,
        masks=masks,
        candidates=candidates,
    )


def _num_blanks(task: Task) -> int:
    return _prompt(task).pattern.count(BLANK)


def _words(task: Task, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of the words of the labels, int64 [labels, blanks].

    Raises `UserError` for words that this vocabulary cannot put into the blanks: of as many tokens, and known ones.
    """
    blanks, words = _num_blanks(task), _prompt(task).words
    found = [tokenizer.encode(word) for word in words]
    for label, word, ids in zip(task.labels, words, found, strict=True):
        if len(ids) != blanks or tokenizer.unk_id in ids:
            tokens = " ".join(tokenizer.tokens[i] for i in ids)
            raise UserError(
                f"{task.name}: the word {word} of label {label} must have {blanks} tokens, but in this vocabulary "
                f"it is {tokens}; take a checkpoint whose vocabulary holds its characters"
            )
    return np.array(found, dtype=np.int64)


def _own_candidates(task: Task, examples: Sequence[Blank], tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of the candidates of each passage, int64 [n, candidates, blanks].

    Raises `UserError` for a passage with more blanks than one or with more or fewer candidates than the task has, and
    for those that this vocabulary cannot put into the blanks. A rare idiom may hold unknown characters, as in the
    published baselines.
    """
    blanks, count = _num_blanks(task), len(task.labels)
    different = sorted({word for example in examples for word in example.candidates})
    found = {word: ids for word, (ids, _) in zip(different, tokenizer.encode_batch(different), strict=True)}
    for example in examples:
        if len(example.pieces) != 2 or len(example.candidates) != count:
            raise example.error(
                f"{len(example.pieces) - 1} blanks and {len(example.candidates)} candidates; by its pattern "
                f"{task.name} has one blank in a passage, and {count} candidates"
            )
        wrong = [word for word in example.candidates if len(found[word]) != blanks]
        if wrong:
            raise example.error(
                f"candidates must have {blanks} tokens, but in this vocabulary {shortened(wrong)} have other numbers "
                f"of them; {task.name} needs idioms of {blanks} characters, and a vocabulary with a token for each"
            )
    return np.array([[found[word] for word in example.candidates] for example in examples], dtype=np.int64)


PROMPTS: Kind[TextExample, Classified] = Kind(
    name="prompts",
    head="masked",
    num_outputs=lambda task: len(task.labels),
    encode=_encode,
    loss=label_loss,
    decode=likeliest,
    as_json=label_and_probabilities,
)

CLOZE_PROMPTS: Kind[Blank, Chosen] = Kind(
    name=PROMPTS.name,
    head="masked",
    num_outputs=lambda task: len(task.labels),
    encode=_encode_blanks,
    loss=label_loss,
    decode=decode_jointly,
)
