"""Training with a SentencePiece vocabulary, from raw text on."""

import random
from pathlib import Path

from megatron.checkpoint.store import find_checkpoint
from megatron.mpu.context import ParallelContext
from tests.commands import run
from tests.training.corpus import records
from tests.training.run import train

WORDS = "今天 天气 很好 我们 去 公园 散步 他 喜欢 读书 北京 上海 学习 中文 model train data".split()


def tool(*argv: object) -> None:
    done = run(*argv)
    assert done.returncode == 0, done.stderr


def test_sentencepiece_from_text_to_checkpoint(tmp_path: Path) -> None:
    draw = random.Random(0)
    sentences = ["".join(draw.choices(WORDS, k=8)) + "。" for _ in range(400)]
    documents = ["\n".join(sentences[i : i + 8]) for i in range(0, 400, 8)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    model = tmp_path / "sp"
    tool(
        "tools/build_vocab.py", "--input", tmp_path / "text.txt", "--output", f"{model}.model",
        "--model-type", "unigram", "--vocab-size", 120,
    )  # fmt: skip
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", f"{model}.model"]
    tool(
        "tools/preprocess_data.py", "--input", tmp_path / "text.txt", "--output-prefix", tmp_path / "corpus",
        "--split-sentences", *tokenizer,
    )  # fmt: skip
    train(
        tmp_path,
        vocab_file=None,
        tokenizer_type="SentencePieceTokenizer",
        tokenizer_model=f"{model}.model",
        save=tmp_path / "save",
        train_iters=3,
    )
    assert len(records(tmp_path)) == 3
    checkpoint = find_checkpoint(tmp_path / "save", context=ParallelContext.single())
    assert (
        checkpoint is not None and (checkpoint / "tokenizer.model").read_bytes() == Path(f"{model}.model").read_bytes()
    )
