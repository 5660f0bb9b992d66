"""A vocabulary from raw text: a BERT vocab.txt, or a SentencePiece model with BERT's special pieces.

vocab.txt holds the special tokens, every character by frequency (Chinese characters and punctuation are whole words
to WordPiece), then the pieces of Latin words and numbers that the WordPiece trainer of `tokenizers` finds.
"""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import regex
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from megatron.data.corpus import BadLine, Block, find_inputs, parse_block, read_blocks
from megatron.data.text import split_sentences
from megatron.data.tokenizer import SPECIAL_TOKENS, wordpiece_backend
from megatron.data.workers import ordered_map
from megatron.errors import UserError
from megatron.files import write_file

MOST_WORDS = 5_000_000
"""Distinct words kept while counting; beyond it the rarest are forgotten, so that memory is bounded."""
MOST_TRAINING_WORDS = 20_000_000
"""Words that the WordPiece trainer reads; counts are scaled down to it."""
MOST_SENTENCES = 2_000_000
"""Sentences that the SentencePiece trainer reads: a fair sample of all."""
LONGEST_SENTENCE = 4192
"""Bytes; SentencePiece leaves longer ones out, so they are cut."""

Part = TypeVar("Part")

_HAN = regex.compile(r"\p{Han}")


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Vocabulary"""

    input: tuple[str, ...]
    """Files, folders or globs, as tools/preprocess_data.py takes them."""
    json_keys: tuple[str, ...] = ("text",)
    """Keys of the JSON objects to read."""
    output: str
    """File to write: vocab.txt, or the SentencePiece model."""
    model_type: Literal["wordpiece", "unigram", "bpe"] = "wordpiece"
    """wordpiece writes a BERT vocab.txt; unigram and bpe a SentencePiece model."""
    vocab_size: int = 21128
    """Largest number of tokens, special ones included."""
    min_frequency: int | None = None
    """wordpiece: least number of times a character, or a piece, occurs (default 5)."""
    unused_tokens: int = 0
    """wordpiece: number of [unusedN] tokens to reserve."""
    character_coverage: float | None = None
    """unigram, bpe: share of the text whose characters get a piece (default 0.9995)."""
    lower_case: bool = False
    """Lower-case the text and strip accents, for BertWordPieceLowerCase."""
    workers: int = 1
    """Worker processes."""
    skip_bad_lines: bool = False
    """Leave malformed lines out and count them; by default the first one stops the run."""


def build_vocabulary(config: VocabularyConfig) -> None:
    """Run `tools/build_vocab.py`. Raises `UserError` for whatever is wrong with options, files or lines."""
    _check(config)
    paths = find_inputs(config.input)
    if Path(config.output).is_dir():
        raise UserError(f"--output {config.output} is a folder; name the file to write")
    if config.model_type == "wordpiece":
        words = count_words(config, paths)
        tokens = wordpiece_vocabulary(
            words,
            vocab_size=config.vocab_size,
            min_frequency=5 if config.min_frequency is None else config.min_frequency,
            unused_tokens=config.unused_tokens,
        )
        report = coverage(words, tokens)
        content = "".join(f"{token}\n" for token in tokens).encode()
    else:
        sentences = sample_sentences(config, paths)
        content = train_sentencepiece(sentences, config)
        report = _sentencepiece_coverage(sentences, content)
    write_file(Path(config.output), content)
    print(f"{config.output}: {report}")


def _check(config: VocabularyConfig) -> None:
    sentencepiece_only = {"--character-coverage": config.character_coverage is not None}
    wordpiece_only = {"--min-frequency": config.min_frequency is not None, "--unused-tokens": config.unused_tokens != 0}
    foreign = sentencepiece_only if config.model_type == "wordpiece" else wordpiece_only
    for flag, given in foreign.items():
        if given:
            raise UserError(f"{flag} does not go with --model-type {config.model_type}")
    if config.vocab_size <= len(SPECIAL_TOKENS) + config.unused_tokens:
        raise UserError(f"--vocab-size {config.vocab_size} leaves no room beside the special and unused tokens")
    for name, least in (("workers", 1), ("min_frequency", 1), ("unused_tokens", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if config.character_coverage is not None and not 0.9 <= config.character_coverage <= 1:
        raise UserError(f"--character-coverage must be from 0.9 to 1, not {config.character_coverage}")


def count_words(config: VocabularyConfig, paths: Sequence[str]) -> Counter[str]:
    """How often each word of BERT's basic tokenization occurs (a Chinese character or a punctuation mark is one)."""
    words: Counter[str] = Counter()
    make = partial(_make_word_counter, keys=config.json_keys, lower_case=config.lower_case)
    for block in _parsed(config, paths, make):
        words.update(block)
        if len(words) > MOST_WORDS:
            words = Counter(dict(words.most_common(MOST_WORDS // 2)))
    if not words:
        raise UserError(f"no text in {', '.join(config.input)}; nothing was written")
    return words


def sample_sentences(config: VocabularyConfig, paths: Sequence[str]) -> list[str]:
    """At most `MOST_SENTENCES` sentences, each with equal chance (reservoir sampling), the same in every run."""
    generator = random.Random(0)
    sample: list[str] = []
    seen = 0
    for sentences in _parsed(config, paths, partial(_make_sentence_reader, keys=config.json_keys)):
        for sentence in sentences:
            seen += 1
            if len(sample) < MOST_SENTENCES:
                sample.append(sentence)
            elif (place := generator.randrange(seen)) < MOST_SENTENCES:
                sample[place] = sentence
    if not sample:
        raise UserError(f"no text in {', '.join(config.input)}; nothing was written")
    return sample


def _parsed(
    config: VocabularyConfig, paths: Sequence[str], make: Callable[[], Callable[[Block], tuple[Part, list[BadLine]]]]
) -> Iterator[Part]:
    """What the workers make of the blocks, after the malformed lines are dealt with."""
    skipped = 0
    with closing(ordered_map(make, read_blocks(paths), workers=config.workers)) as blocks:
        for part, bad_lines in blocks:
            if bad_lines and not config.skip_bad_lines:
                raise UserError(f"{bad_lines[0]} (--skip-bad-lines leaves such lines out); nothing was written")
            skipped += len(bad_lines)
            yield part
    if skipped:
        print(f"{skipped:,} malformed lines skipped", flush=True)


def _make_word_counter(
    *, keys: tuple[str, ...], lower_case: bool
) -> Callable[[Block], tuple[Counter[str], list[BadLine]]]:
    normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def count(block: Block) -> tuple[Counter[str], list[BadLine]]:
        documents, bad = parse_block(block, keys)
        # The normalizer puts spaces around Chinese characters: few distinct chunks are left to split at punctuation.
        chunks: Counter[str] = Counter()
        for texts in documents:
            for text in texts:
                chunks.update(normalizer.normalize_str(text).split())
        words: Counter[str] = Counter()
        for chunk, number in chunks.items():
            for word, _ in pre_tokenizer.pre_tokenize_str(chunk):
                words[word] += number
        return words, bad

    return count


def _make_sentence_reader(*, keys: tuple[str, ...]) -> Callable[[Block], tuple[list[str], list[BadLine]]]:
    def read(block: Block) -> tuple[list[str], list[BadLine]]:
        documents, bad = parse_block(block, keys)
        sentences = (sentence for texts in documents for text in texts for sentence in split_sentences(text))
        return [piece for sentence in sentences for piece in _cut(sentence)], bad

    return read


def _cut(sentence: str) -> list[str]:
    sentence = sentence.replace("\0", " ")
    size = LONGEST_SENTENCE if sentence.isascii() else LONGEST_SENTENCE // 4
    return [sentence[i : i + size] for i in range(0, len(sentence), size)]


def wordpiece_vocabulary(words: Counter[str], *, vocab_size: int, min_frequency: int, unused_tokens: int) -> list[str]:
    """Tokens in the order of their ids: special, unused, characters by frequency, pieces as the trainer merges them.

    Characters come before pieces: without one a whole word is [UNK]. Rarer characters are left out if all do not fit.
    """
    reserved = [*SPECIAL_TOKENS, *(f"[unused{i}]" for i in range(1, unused_tokens + 1))]
    characters: Counter[str] = Counter()
    for word, number in words.items():
        for i, character in enumerate(word):
            characters[character if i == 0 else f"##{character}"] += number
    # Equal counts in the order of the characters, so that the order of the text does not matter.
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    alphabet = [token for token, number in ranked if number >= min_frequency][: vocab_size - len(reserved)]
    tokens = list(dict.fromkeys(reserved + alphabet))
    room = vocab_size - len(tokens)
    return tokens + _train_pieces(words, set(alphabet), min_frequency, room) if room else tokens


def _train_pieces(words: Counter[str], alphabet: set[str], min_frequency: int, most: int) -> list[str]:
    """At most `most` pieces of two and more characters, in the order in which the trainer merges them."""
    usable = {
        word: number
        for word, number in sorted(words.items())
        if len(word) > 1 and word[0] in alphabet and all(f"##{character}" in alphabet for character in word[1:])
    }
    divisor = max(1.0, sum(usable.values()) / MOST_TRAINING_WORDS)
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        # The trainer also counts every character by itself, whether it starts words or not.
        vocab_size=len(alphabet) + len({character for word in usable for character in word}) + most,
        min_frequency=max(1, round(min_frequency / divisor)),
        # Given as tokens they get their ids in this order; else it is that of a hash table, and ties with it.
        special_tokens=sorted(alphabet),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(usable, divisor), trainer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in pieces if len(piece.removeprefix("##")) > 1][:most]


def _repeated(words: dict[str, int], divisor: float) -> Iterator[str]:
    for word, number in words.items():
        left = round(number / divisor)
        while left > 0:
            yield " ".join([word] * min(left, 10_000))
            left -= 10_000


def coverage(words: Counter[str], tokens: Sequence[str]) -> str:
    """How a vocabulary does on the words it was made from."""
    model = wordpiece_backend(tokens, lower_case=False).model
    known = pieces = 0
    for word, number in words.items():
        encoded = model.tokenize(word)
        pieces += number * len(encoded)
        if encoded[0].value != "[UNK]":
            known += number
    total = words.total()
    chinese = {word for word in words if len(word) == 1 and _HAN.match(word)}
    kept = len(chinese.intersection(tokens))
    return (
        f"{len(tokens):,} tokens, {kept:,} of them Chinese characters (of {len(chinese):,} in the text); "
        f"{100 * known / total:.3f} % of {total:,} words covered, {100 - 100 * known / total:.3f} % [UNK]; "
        f"{pieces / total:.3f} tokens a word"
    )


def train_sentencepiece(sentences: Sequence[str], config: VocabularyConfig) -> bytes:
    """A SentencePiece model with [PAD] [UNK] [CLS] [SEP] [MASK] as pieces 0 to 4."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            character_coverage=0.9995 if config.character_coverage is None else config.character_coverage,
            normalization_rule_name="nmt_nfkc_cf" if config.lower_case else "nmt_nfkc",
            max_sentence_length=LONGEST_SENTENCE,
            hard_vocab_limit=False,
            num_threads=4,  # constant: sums of floats depend on it
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            control_symbols=["[MASK]"],
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).split("] ")[-1]
        raise UserError(f"SentencePiece cannot make {config.vocab_size} pieces of this text: {reason}") from None
    return model.getvalue()


def _sentencepiece_coverage(sentences: Sequence[str], model: bytes) -> str:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    part = sentences[:100_000]
    ids = Counter(i for encoded in processor.encode(list(part), out_type=int, num_threads=1) for i in encoded)
    total = ids.total()
    return (
        f"{processor.get_piece_size():,} pieces; {100 * ids[processor.unk_id()] / total:.3f} % [UNK]; "
        f"{sum(map(len, part)) / total:.3f} characters a piece"
    )
