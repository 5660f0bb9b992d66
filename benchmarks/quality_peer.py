"""The peer of quality.py: a plain Hugging Face loop, as one writes it, over the same samples.

Samples are tokenized and cut into words before the loop, as `datasets.map` and a file of word references do it; what
is left for the collator is whole-word masking in Python and padding to the longest sample of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import jieba
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig
from transformers import BertForPreTraining as HuggingFaceBert

from megatron.checkpoint.hub_names import parameter_table, split
from megatron.config import PretrainConfig
from megatron.data.batches import Batch, Split
from megatron.data.tokenizer import Tokenizer
from megatron.model import BertForPreTraining


@dataclass(frozen=True, slots=True)
class Sample:
    """Ids and token types of a sample without masks, the places of each of its words, and its sentence-order label."""

    tokens: torch.Tensor
    token_types: torch.Tensor
    words: list[list[int]]
    swapped: int


def unmasked_samples(split: Split, count: int, tokenizer: Tokenizer) -> list[Sample]:
    """The first samples of a split, as they are before they are masked."""
    samples = []
    for first in range(0, count, 256):
        batch = split.assemble(first, min(256, count - first))
        tokens = batch.tokens.copy()
        tokens.reshape(-1)[batch.masked_positions] = batch.masked_labels
        for row, length in enumerate(batch.lengths):
            ids = tokens[row, :length]
            samples.append(
                Sample(
                    torch.from_numpy(ids.copy()),
                    torch.from_numpy(batch.token_types[row, :length].copy()),
                    _words(ids, tokenizer),
                    int(batch.sop_labels[row]),
                )
            )
    return samples


def _words(ids: np.ndarray, tokenizer: Tokenizer) -> list[list[int]]:
    """The places of the tokens of each word, by jieba; no special tokens."""
    names = [tokenizer.tokens[number] for number in ids]
    special = {tokenizer.cls_id, tokenizer.sep_id}
    pieces = [
        "\n" if number in special else name[2:] if name.startswith("##") else name if len(name) == 1 else f" {name}"
        for name, number in zip(names, ids.tolist(), strict=True)
    ]
    starts, place = set(), 0
    for word in jieba.cut("".join(pieces)):
        starts.add(place)
        place += len(word)
    words: list[list[int]] = []
    place = 0
    for column, (piece, number) in enumerate(zip(pieces, ids.tolist(), strict=True)):
        # Blanks are words of their own, so the text of a token after one starts one character later.
        begins = place + len(piece) - len(piece.lstrip(" "))
        place += len(piece)
        if number in special:
            continue
        if begins in starts or not words or words[-1][-1] != column - 1:
            words.append([])
        words[-1].append(column)
    return words


def collator(tokenizer: Tokenizer, seed: int) -> Callable[[Sequence[Sample]], dict[str, torch.Tensor]]:
    """Whole-word masking of 15 % of the tokens, 80 % of them by [MASK], 10 % by another token, as BERT's."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([sample.tokens for sample in samples], batch_first=True, padding_value=tokenizer.pad_id)
        masked = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            wanted, taken = max(1, round(0.15 * len(sample.tokens))), 0
            for word in draw.sample(sample.words, len(sample.words)):
                if taken + len(word) <= wanted:
                    masked[row, word] = True
                    taken += len(word)
        chance = torch.rand(tokens.shape, generator=generator)
        others = torch.randint(tokenizer.vocab_size, tokens.shape, generator=generator)
        shown = torch.where(masked & (chance < 0.8), tokenizer.mask_id, tokens)
        shown = torch.where(masked & (chance >= 0.9), others, shown)
        lengths = torch.tensor([len(sample.tokens) for sample in samples])
        return {
            "input_ids": shown,
            "token_type_ids": pad([sample.token_types for sample in samples], batch_first=True),
            "attention_mask": (torch.arange(tokens.shape[1]) < lengths[:, None]).long(),
            "labels": torch.where(masked, tokens, -100),
            "next_sentence_label": torch.tensor([sample.swapped for sample in samples]),
        }

    return collate


def same_model(ours: BertForPreTraining, config: PretrainConfig) -> HuggingFaceBert:
    """The Hugging Face class with the weights of ours. Its eager attention is faster here than the fused one.

    (The fused one of a CPU has no dropout.)
    """
    model = config.model
    shape = BertConfig(
        vocab_size=model.vocab_size, hidden_size=model.hidden_size, num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads, intermediate_size=model.ffn_hidden_size or 4 * model.hidden_size,
        max_position_embeddings=model.max_position_embeddings, type_vocab_size=model.type_vocab_size,
        layer_norm_eps=model.layernorm_epsilon, hidden_dropout_prob=model.hidden_dropout,
        attention_probs_dropout_prob=model.attention_dropout, attn_implementation="eager",
    )  # fmt: skip
    peer = HuggingFaceBert(shape).train()
    theirs = dict(peer.named_parameters())
    table = parameter_table(model, "bert.")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            _, names = table[name]
            for their_name, part in zip(
                names, split(parameter.float(), model.num_attention_heads, len(names)), strict=True
            ):
                theirs[their_name].copy_(part)
    return peer


def training(
    model: HuggingFaceBert,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    config: PretrainConfig,
    rates: Iterator[float],
    *,
    autocast: bool,
) -> Callable[[int], None]:
    """The loop, as a function that does so many steps of it."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=options.lr, betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_eps, fused=True,
    )  # fmt: skip
    loader = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=config.training.global_batch_size,
        collate_fn=collator(tokenizer, config.training.seed),
    )
    batches = iter(loader)

    def advance(steps: int) -> None:
        for batch, rate in islice(zip(batches, rates, strict=False), steps):
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad)
            optimizer.step()
            optimizer.zero_grad()

    return advance


def evaluation_loss(model: HuggingFaceBert, batches: Sequence[Batch], *, autocast: bool) -> float:
    """Mean loss (nats) of the masked tokens of batches of ours, without dropout."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for batch in batches:
            tokens = torch.from_numpy(batch.tokens)
            real = torch.arange(tokens.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
            logits = model(
                input_ids=tokens, token_type_ids=torch.from_numpy(batch.token_types), attention_mask=real.long()
            ).prediction_logits
            masked = logits.flatten(0, 1)[torch.from_numpy(batch.masked_positions)].float()
            labels = torch.from_numpy(batch.masked_labels)
            total += torch.nn.functional.cross_entropy(masked, labels, reduction="sum").item()
            count += len(labels)
    model.train()
    return total / count
