"""Filling blanks: encoding of patterns, and scores against other models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.checkpoint import to_huggingface
from megatron.data.tokenizer import Tokenizer
from megatron.errors import UserError
from megatron.model import BertForPreTraining, BertForPrompts
from megatron.mpu.context import ParallelContext
from megatron.tasks.encode import Encoded, TaskBatch
from megatron.tasks.kinds.classification import TextExample
from megatron.tasks.kinds.cloze import Blank
from megatron.tasks.kinds.prompts import CLOZE_PROMPTS, PROMPTS, with_prompt
from megatron.tasks.pretrained import Pretrained, load_weights, open_pretrained
from megatron.tasks.table import find_task
from megatron.tasks.task import Prompt, Task
from tests.tasks.tiny import CHARACTERS, write_checkpoint

SINGLE = ParallelContext.single()
MASK = "[MASK]"


def prompted(pattern: str, words: tuple[str, ...], **values: Any) -> Task:
    labels = tuple(str(number) for number in range(len(words) or 3))
    task = dataclasses.replace(find_task("afqmc"), name="made-up", labels=labels, **values)
    return with_prompt(dataclasses.replace(task, prompt=Prompt(pattern=pattern, words=words)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a vocabulary that two do not divide."""
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint", characters="说，：")


@pytest.fixture(scope="module")
def pretrained(checkpoint: Path) -> Pretrained:
    found = open_pretrained(checkpoint, checkpoint.parent / "none", SINGLE)
    assert found.model.vocab_size % 2 == 1
    return found


@pytest.fixture(scope="module")
def tokenizer(pretrained: Pretrained) -> Tokenizer:
    return pretrained.tokenizer


def examples(*texts: tuple[str, ...]) -> list[TextExample]:
    return [TextExample(text, row % 3, row) for row, text in enumerate(texts)]


def shown(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    tokens = [tokenizer.tokens[i] for i in encoded.tokens]
    bounds = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return ["".join(tokens[start:end]) for start, end in bounds]


# ---- Encoding ------------------------------------------------------------------------------------------------------


def test_pattern_of_two_texts(tokenizer: Tokenizer) -> None:
    task = prompted(f"{{1}}说{MASK}{MASK}：{{0}}", ("天地", "山水", "天水"))
    encoded = PROMPTS.encode(task, examples(("金木", "日月"), ("[MASK]{1}", "")), tokenizer, 32)
    assert shown(encoded, tokenizer) == [
        "[CLS]日月说[MASK][MASK]：金木[SEP]",
        # what looks like a blank in a text is none
        "[CLS]说[MASK][MASK]：[MASK][UNK]1[UNK][SEP]",
    ]
    assert encoded.masks is not None and encoded.candidates is not None
    assert encoded.masks.tolist() == [[4, 5], [2, 3]]
    ids = {token: number for number, token in enumerate(tokenizer.tokens)}
    words = [[ids[character] for character in word] for word in ("天地", "山水", "天水")]
    assert encoded.candidates.tolist() == [words, words]
    assert encoded.labels.tolist() == [0, 1]
    assert (encoded.first_lengths == encoded.lengths).all()
    assert encoded.truncated == 0


@pytest.mark.parametrize("truncate", ["longest", "second"])
def test_blanks_and_pattern_survive_truncation(tokenizer: Tokenizer, truncate: str) -> None:
    task = prompted(f"{{0}}说{MASK}{MASK}：{{1}}", ("天地", "山水", "天水"), truncate=truncate)
    first, second = CHARACTERS[:12], CHARACTERS[12:] * 2
    for length in range(7, 40):
        encoded = PROMPTS.encode(task, examples((first, second)), tokenizer, length)
        (text,) = shown(encoded, tokenizer)
        assert encoded.lengths[0] == min(length, 6 + len(first) + len(second))
        before, after = text.removeprefix("[CLS]").removesuffix("[SEP]").split("说[MASK][MASK]：")
        assert encoded.masks is not None
        assert (encoded.tokens[encoded.masks[0]] == tokenizer.mask_id).all()
        # what is nearest to the blanks stays
        assert first.endswith(before) and second.startswith(after)
        assert encoded.truncated == (length < 6 + len(first) + len(second))
        if truncate == "second":
            assert len(before) == min(len(first), length - 6)
        elif len(before) < len(first) and len(after) < len(second):
            assert abs(len(before) - len(after)) <= 1
    with pytest.raises(UserError, match="--seq-length 6 leaves no room for texts: the pattern .* alone has 6 tokens"):
        PROMPTS.encode(task, examples((first, second)), tokenizer, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("天地", "山", "天水"), "made-up: the word 山 of label 1 must have 2 tokens, but in this vocabulary it is 山"),
        (("天地", "山水", "天鹰"), r"the word 天鹰 of label 2 must .* it is 天 \[UNK\]; take a checkpoint whose"),
    ],
)
def test_words_that_do_not_fit_the_blanks(tokenizer: Tokenizer, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PROMPTS.encode(prompted(f"{MASK}{MASK}{{0}}", words), examples(("金",)), tokenizer, 32)


def test_candidates_of_each_example(tokenizer: Tokenizer) -> None:
    task = prompted(f"{{0}}{MASK}{MASK}{{1}}", ())
    assert task.kind is CLOZE_PROMPTS
    rows = [
        Blank(("金", "木"), 0, ("天地", "山水", "天水"), 2, 0, "a.json, line 1"),
        Blank(("", "日月"), 0, ("水天", "鹰飞", "天地"), 0, 1, "a.json, line 2"),
    ]
    encoded = CLOZE_PROMPTS.encode(task, rows, tokenizer, 32)
    assert shown(encoded, tokenizer) == ["[CLS]金[MASK][MASK]木[SEP]", "[CLS][MASK][MASK]日月[SEP]"]
    assert encoded.candidates is not None
    words = [["".join(tokenizer.tokens[i] for i in word) for word in row] for row in encoded.candidates]
    assert words == [["天地", "山水", "天水"], ["水天", "[UNK][UNK]", "天地"]]
    assert encoded.labels.tolist() == [2, 0]
    scores = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert [found.choice for found in CLOZE_PROMPTS.decode(task, rows, encoded, scores)] == [1, 0]


@pytest.mark.parametrize(
    ("pieces", "candidates", "message"),
    [
        (("金", "木"), ("天地", "山", "天水"), "candidates must have 2 tokens, but in this vocabulary 山 have other"),
        (("金", "木"), ("天地", "山水"), "1 blanks and 2 candidates; by its pattern made-up has one .*, and 3"),
        (("金", "木", "火"), ("天地", "山水", "天水"), "2 blanks and 3 candidates"),
    ],
)
def test_candidates_that_do_not_fit_the_pattern(
    tokenizer: Tokenizer, pieces: tuple[str, ...], candidates: tuple[str, ...], message: str
) -> None:
    rows = [Blank(pieces, 0, candidates, 0, 0, "a.json, line 3")]
    with pytest.raises(UserError, match=f"^a.json, line 3: {message}"):
        CLOZE_PROMPTS.encode(prompted(f"{{0}}{MASK}{MASK}{{1}}", ()), rows, tokenizer, 32)


def test_a_task_without_a_pattern() -> None:
    with pytest.raises(UserError, match="--prompt and --zero-shot are for tasks with a pattern.*, not for tnews"):
        with_prompt(find_task("tnews"))


# ---- Scores --------------------------------------------------------------------------------------------------------

WORDS = ("天地", "山水", "天水")


def batch_of(tokenizer: Tokenizer) -> tuple[Task, Encoded, TaskBatch]:
    task = prompted(f"{{0}}说{MASK}{MASK}：{{1}}", WORDS)
    texts = [(CHARACTERS[n : 2 * n + 1], CHARACTERS[3 * n :: 2]) for n in range(7)]
    encoded = PROMPTS.encode(task, examples(*texts), tokenizer, 24)
    return task, encoded, encoded.batch(np.arange(7))


def tensors(*arrays: np.ndarray | None) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays if array is not None]


@pytest.mark.parametrize("architecture", ["bert", "megatron-bert"])
def test_scores_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path / "checkpoint", architecture=architecture, characters="说，：")
    pretrained = open_pretrained(folder, tmp_path / "none", SINGLE)
    task, encoded, batch = batch_of(pretrained.tokenizer)
    model = BertForPrompts(dataclasses.replace(pretrained.model, hidden_dropout=0.0), SINGLE)
    load_weights([model], pretrained, fine_tuned=False, context=SINGLE)
    tokens, types, lengths, masks, candidates = tensors(
        batch.tokens, batch.token_types, batch.lengths, batch.masks, batch.candidates
    )
    with torch.no_grad():
        scores = model(tokens, types, lengths, masks, candidates, None)

    to_huggingface(folder, tmp_path / "hub")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hub").eval()
    padding = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        logits = theirs(input_ids=tokens, token_type_ids=types, attention_mask=padding.long()).logits
    expected = torch.zeros_like(scores)
    products = torch.ones_like(scores, dtype=torch.float64)
    probabilities = logits.double().softmax(-1)
    for row, columns in enumerate(masks.tolist()):
        for number, word in enumerate(WORDS):
            for column, token in zip(columns, pretrained.tokenizer.encode(word), strict=True):
                expected[row, number] += logits[row, column, token]
                products[row, number] *= probabilities[row, column, token]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    # PET's probabilities: products over the blanks, normalized over the candidates
    rows = [TextExample(("",), None, 0)] * 7
    found = PROMPTS.decode(task, rows, encoded, scores.numpy())
    normalized = (products / products.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose([one.probabilities for one in found], normalized, rtol=1e-4)
    assert [one.label for one in found] == [str(number) for number in products.argmax(1).tolist()]


def test_gradients_are_those_of_the_full_logits(pretrained: Pretrained) -> None:
    task, _, batch = batch_of(pretrained.tokenizer)
    tokens, types, lengths, masks, candidates, labels = tensors(
        batch.tokens, batch.token_types, batch.lengths, batch.masks, batch.candidates, batch.labels
    )
    model, full = BertForPrompts(pretrained.model, SINGLE), BertForPreTraining(pretrained.model, SINGLE)
    for one in (model, full):
        load_weights([one], pretrained, fine_tuned=False, context=SINGLE)
    loss, hits = PROMPTS.loss(task, model(tokens, types, lengths, masks, candidates, None), batch)
    loss.backward()
    hidden = full.hidden_states(tokens, types, lengths, None)
    everywhere = torch.arange(tokens.numel())
    logits = full.mlm_logits(hidden, everywhere).reshape(*tokens.shape, -1)
    at_blanks = logits[torch.arange(7)[:, None], masks]  # [b, m, V]
    scores = torch.stack([at_blanks[:, 0, word[0]] + at_blanks[:, 1, word[1]] for word in candidates[0]], dim=1)
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert hits.item() == (scores.argmax(1) == labels).sum().item()
    gradients = {name: parameter.grad for name, parameter in full.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


# ---- Layouts -------------------------------------------------------------------------------------------------------
