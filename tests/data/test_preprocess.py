"""tools/preprocess_data.py: files written, command lines as a user types them, and inputs that are wrong."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import re
import resource
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
import zstandard

from megatron.data import division
from megatron.data.indexed import IndexedDataset
from megatron.data.preprocess import PreprocessConfig, preprocess
from megatron.data.provenance import source_of
from megatron.data.segmenter import load_segmenter
from megatron.data.text import split_sentences
from megatron.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from megatron.errors import UserError
from tests.commands import run, start

TEXTS = ["我们在动物园。你好！", "好", "", "the zoo。Tom 我们 zoos?\n在\x00园", "🙂龘。"]
CHARACTERS = "我们在动物园你好。！，"


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    """A small corpus with one file of each kind, and a vocabulary."""
    tokens = [*SPECIAL_TOKENS, *CHARACTERS, "the", "zoo", "##s", "tom", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    folder = tmp_path / "input"
    folder.mkdir()
    lines = [json.dumps({"text": text, "title": f"你好{i}"}, ensure_ascii=False) for i, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "b.json.gz").write_bytes(gzip.compress("\r\n".join(lines * 40).encode("utf-8-sig")))
    return PreprocessConfig(
        input=(str(folder),),
        output_prefix=str(tmp_path / "output" / "corpus"),
        tokenizer_type="BertWordPieceLowerCase",
        vocab_file=str(tmp_path / "vocab.txt"),
        split_sentences=True,
        segmenter="jieba",
    )


def outputs(config: PreprocessConfig) -> dict[str, bytes]:
    folder = Path(config.output_prefix).parent
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} if folder.exists() else {}


def command(config: PreprocessConfig) -> list[str]:
    flags = ["--input", *config.input, "--output-prefix", config.output_prefix]
    flags += ["--tokenizer-type", config.tokenizer_type, "--vocab-file", str(config.vocab_file)]
    flags += ["--segmenter", config.segmenter, "--workers", str(config.workers), "--split-sentences"]
    return ["tools/preprocess_data.py", *flags]


def test_what_is_written(config: PreprocessConfig) -> None:
    preprocess(replace(config, input=(f"{config.input[0]}/a.jsonl",)))
    prefix = f"{config.output_prefix}_text_sentence"
    assert sorted(outputs(config)) == [
        f"corpus_text_sentence.{part}" for part in ("bin", "idx", "json", "sources", "words")
    ]

    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file)
    dataset = IndexedDataset(prefix)
    kept = [text for text in TEXTS if text]
    expected = [tokenizer.encode(sentence) for text in kept for sentence in split_sentences(text)]
    assert [dataset.sentence(i).tolist() for i in range(dataset.num_sentences)] == expected
    assert dataset.document_index.tolist() == [0, *np.cumsum([len(split_sentences(text)) for text in kept])]
    assert dataset.dtype == np.uint16
    # 我们 在 动物园 。
    assert dataset.word_starts(0).tolist() == [True, False, True, True, False, False, True]  # type: ignore[union-attr]

    card = json.loads(Path(f"{prefix}.json").read_text(encoding="utf-8"))
    assert (card["documents"], card["empty_documents"], card["skipped_lines"]) == (4, 1, 0)
    assert card["sentences"] == len(expected)
    assert card["tokens"] == sum(map(len, expected)) == dataset.num_tokens
    assert card["text_bytes"] == len("".join(TEXTS).encode())
    unknown = sum(ids.count(tokenizer.unk_id) for ids in expected)
    assert unknown == 2
    assert card["unknown_rate"] == unknown / card["tokens"]
    assert card["mean_sentence_length"] == card["tokens"] / card["sentences"]
    # 我们 动物园 你好; the zoo tom 我们 zoos
    assert card["multi_character_words"] == 8
    assert card["multi_character_word_share"] == 8 / card["words"]
    assert card["vocabulary_hash"] == hashlib.sha256("\n".join(tokenizer.tokens).encode()).hexdigest()
    assert card["options"]["segmenter"] == "jieba"
    assert {"megatron", "tokenizers", "jieba"} <= set(card["versions"])


def test_the_number_of_workers_does_not_matter(config: PreprocessConfig) -> None:
    lines = [json.dumps({"text": f"{text}{i % 7}"}) for i in range(2500) for text in TEXTS]
    Path(config.input[0], "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = replace(config, json_keys=("text",), log_interval=100_000)
    preprocess(config)
    one = outputs(config)
    preprocess(replace(config, workers=2, log_interval=7))
    assert outputs(config) == one


def test_shards_and_interruptions_do_not_matter(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "divided"
    folder.mkdir()
    lines = "".join(json.dumps({"text": f"{text}{i % 7}"}) + "\n" for i in range(300) for text in TEXTS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode(), compresslevel=0))
    (folder / "c.txt").write_bytes("我们在动物园\n\n".encode() * 500 + b"\xff\n\n" + "你好\n\n".encode() * 500)
    config = replace(config, input=(str(folder),), skip_bad_lines=True, segmenter="none")
    preprocess(config)
    whole = outputs(config)
    assert "c.txt:1001: not UTF-8" in capsys.readouterr().err

    monkeypatch.setattr(division, "SMALLEST_SHARD", 1 << 13)
    with pytest.raises(UserError, match=r"c.txt:1001: not UTF-8.*; no output was written; \d+ finished shards"):
        preprocess(replace(config, skip_bad_lines=False, workers=2))
    assert outputs(config) == whole
    work = Path(f"{config.output_prefix}.shards")
    records = sorted(work.glob("*.json"))
    assert len(records) > 10
    for number, record in enumerate(records):
        assert (record.stat().st_size > 0) and not list(work.glob("*.tmp*"))
        if number % 3 == 0:
            record.unlink()
    capsys.readouterr()
    preprocess(config)
    assert f"going on: {len(records) - len(records[::3])} finished shards" in capsys.readouterr().out
    assert outputs(config) == whole
    assert not work.exists()


def test_other_options_start_over(config: PreprocessConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(config.input[0], "z.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="2 finished shards"):
        preprocess(config)
    Path(config.input[0], "z.jsonl").unlink()
    preprocess(replace(config, segmenter="none"))
    assert "2 shards of other inputs, options or code were in" in capsys.readouterr().out
    other = outputs(config)
    preprocess(config)
    assert outputs(config) != other


def test_two_runs_at_once_are_refused(config: PreprocessConfig) -> None:
    work = Path(f"{config.output_prefix}.shards")
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process preprocesses into"):
            preprocess(config)


@pytest.mark.parametrize("size", [1 << 17, 1 << 11], ids=["while writing", "in the last bytes"])
def test_a_full_disk_is_an_error(config: PreprocessConfig, size: int) -> None:
    Path(config.input[0], "c.txt").write_text("我们在动物园。" * 20_000, encoding="utf-8")
    # A file may not grow beyond this: to a writer the same as a disk that is full.
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    done = run(*command(config), preexec_fn=limit)
    assert done.returncode == 2
    assert re.fullmatch(
        r"preprocess_data.py: error: cannot write .*: File too large; no output was written; [12] finished shards.*\n",
        done.stderr,
    )
    assert outputs(config) == {}


@pytest.mark.parametrize("size", [1 << 23, 1 << 12], ids=["read by a worker", "divided by the reader"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_archives(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, suffix: str
) -> None:
    monkeypatch.setattr(division, "SMALLEST_SHARD", size)
    content = "".join(json.dumps({"text": f"{i * i}"}) + "\n" for i in range(3000)).encode()
    packed = gzip.compress(content) if suffix == ".gz" else zstandard.ZstdCompressor().compress(content)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[:-9])
    with pytest.raises(UserError, match=rf"a.jsonl{suffix} is truncated or damaged after line \d+"):
        preprocess(replace(config, input=(str(path),), skip_bad_lines=True))
    assert outputs(config) == {}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_endless_line_is_skipped(config: PreprocessConfig, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    content = b'{"text": "\xe6\x88\x91"}\n' + b"x" * (100 << 20) + b'\n{"text": "\xe4\xbd\xa0"}\n'
    path.write_bytes(content if suffix == "" else gzip.compress(content, compresslevel=1))
    config = replace(config, input=(str(path),))
    with pytest.raises(UserError, match=rf"a.jsonl{suffix}:2: longer than 32 MiB"):
        preprocess(config)
    preprocess(replace(config, skip_bad_lines=True))
    prefix = f"{config.output_prefix}_text_sentence"
    assert [source_of(prefix, document)[1] for document in range(2)] == [1, 3]


def test_empty_files_and_nul_bytes(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "nul.txt").write_bytes("我\0们\n\n\0\n\n好".encode())
    config = replace(config, input=(f"{tmp_path}/empty.txt", f"{tmp_path}/nul.txt"))
    with pytest.raises(UserError, match="no text under key 'text' in .*; nothing was written"):
        preprocess(replace(config, input=config.input[:1]))
    assert not Path(config.output_prefix).parent.exists() or outputs(config) == {}
    preprocess(config)
    prefix = f"{config.output_prefix}_text_sentence"
    assert [source_of(prefix, document) for document in range(2)] == [(config.input[1], 1), (config.input[1], 5)]


def test_one_output_a_key(config: PreprocessConfig) -> None:
    preprocess(replace(config, json_keys=("title", "text"), segmenter="none"))
    titles = IndexedDataset(f"{config.output_prefix}_title_sentence")
    assert titles.num_documents == titles.num_sentences == 41 * len(TEXTS)
    assert IndexedDataset(f"{config.output_prefix}_text_sentence").num_documents == 41 * 4


def test_without_split_sentences_a_document_is_one_sentence(config: PreprocessConfig) -> None:
    preprocess(replace(config, split_sentences=False))
    dataset = IndexedDataset(f"{config.output_prefix}_text_document")
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file)
    assert dataset.num_documents == dataset.num_sentences == 41 * 4
    assert dataset.sentence(0).tolist() == tokenizer.encode(TEXTS[0])


def test_plain_text(config: PreprocessConfig, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("我们。\n你好\n\n\n动物园！好。", encoding="utf-8")
    preprocess(replace(config, input=(str(path),)))
    assert IndexedDataset(f"{config.output_prefix}_text_sentence").document_index.tolist() == [0, 2, 4]


def test_case_is_kept_or_not(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Tom tom", encoding="utf-8")
    unknown = []
    for kind in ("BertWordPieceCase", "BertWordPieceLowerCase"):
        preprocess(replace(config, input=(f"{tmp_path}/a.txt",), tokenizer_type=kind))
        card = json.loads(outputs(config)["corpus_text_sentence.json"])
        unknown.append(card["unknown_tokens"])
    assert unknown == [1, 0]


@pytest.mark.parametrize("segmenter", ["none", "jieba"])
def test_other_segmenters(config: PreprocessConfig, segmenter: str) -> None:
    preprocess(replace(config, segmenter=segmenter))
    starts = IndexedDataset(f"{config.output_prefix}_text_sentence").word_starts(0)
    assert starts is not None
    assert starts.tolist() == [True, segmenter == "none", True, True, *[segmenter == "none"] * 2, True]


def test_the_user_dictionary_is_used(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("在动物园\n", encoding="utf-8")
    preprocess(replace(config, user_dict=str(tmp_path / "words.txt")))
    starts = IndexedDataset(f"{config.output_prefix}_text_sentence").word_starts(0)
    assert starts is not None
    assert starts.tolist() == [True, False, True, False, False, False, True]


def test_malformed_lines_stop_the_run_or_are_counted(
    config: PreprocessConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "\xe6\x88\x91"}\n{"text": 3}\n\xff\n' + b"{}\n" * 30 + b'{"text": "\xe4\xbd\xa0"}')
    config = replace(config, input=(str(path),))
    with pytest.raises(UserError, match=r"bad.jsonl:2: the value of 'text' is a number, .*--skip-bad-lines"):
        preprocess(config)
    assert outputs(config) == {}
    preprocess(replace(config, skip_bad_lines=True))
    card = json.loads(outputs(config)["corpus_text_sentence.json"])
    assert (card["documents"], card["skipped_lines"]) == (2, 32)
    written = capsys.readouterr()
    assert f"{path}:3: not UTF-8" in written.err
    assert len(written.err.splitlines()) == 20
    assert "32 lines skipped" in written.out


def test_a_failed_run_leaves_the_old_output(config: PreprocessConfig) -> None:
    preprocess(config)
    before = outputs(config)
    Path(config.input[0], "z.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="z.jsonl:1: not JSON"):
        preprocess(config)
    assert outputs(config) == before


def test_nothing_to_write(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "", "title": "你好"}\n{"text": " \\u0000", "title": ""}\n')
    config = replace(config, input=(f"{tmp_path}/a.jsonl",))
    with pytest.raises(UserError, match="no text under key 'text'"):
        preprocess(config)
    with pytest.raises(UserError, match="no text under key 'text'"):
        preprocess(replace(config, json_keys=("title", "text")))
    assert outputs(config) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1"),
        ({"log_interval": 0}, "--log-interval must be at least 1"),
        ({"json_keys": ("text", "text")}, "--json-keys must name every key once"),
        ({"vocab_file": None}, "needs --vocab-file"),
        ({"vocab_file": "/absent/vocab.txt"}, "No such file"),
        ({"tokenizer_model": "x"}, "--tokenizer-model does not go with"),
        ({"segmenter": "none", "user_dict": "x"}, "--user-dict needs a segmenter"),
        ({"input": ("/absent.jsonl",)}, "no such file"),
        ({"output_prefix": "/proc/nowhere/corpus"}, "cannot write /proc/nowhere/corpus.shards"),
        ({"shard": "0/3"}, "--shard 0/3: give I/N"),
        ({"shard": "3/3"}, "--shard 3/3: the input divides into 2 parts at most"),
    ],
)
def test_wrong_options(config: PreprocessConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        preprocess(replace(config, **changes))  # type: ignore[arg-type]


def test_keys_and_plain_text_do_not_go_together(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a"))
    with pytest.raises(UserError, match="several --json-keys"):
        preprocess(replace(config, input=(f"{tmp_path}/a.txt.gz",), json_keys=("a", "b")))


def test_the_command_line(config: PreprocessConfig) -> None:
    done = run(*command(config), "--log-interval", 50, "--json-keys", "text")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    progress = [line for line in done.stdout.splitlines() if "ETA" in line]
    assert progress
    assert all(part in progress[0] for part in (" MB/s", " documents/s", " %", "ETA 0:00:"))
    assert "164 documents" in done.stdout
    preprocess(config)
    assert json.loads(outputs(config)["corpus_text_sentence.json"])["documents"] == 164


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "ugly.jsonl:2: not UTF-8 at byte 10 (0xff)"),
        (b'{"title": "a"}\n', "ugly.jsonl:1: no key 'text'"),
        (b'{\n  "text": "a"\n}\n', "ugly.jsonl:1: not JSON"),
    ],
)
def test_ugly_files_give_one_message(config: PreprocessConfig, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ugly.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    done = run(*command(replace(config, input=(str(path),))))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("preprocess_data.py: error: ")
    assert outputs(config) == {}


@pytest.fixture
def running(config: PreprocessConfig) -> Popen[str]:
    """A command that has finished a shard and has minutes of work before it."""
    text = json.dumps({"text": "我们在动物园。" * 2000})
    Path(config.input[0], "long.jsonl").write_text(f"{text}\n" * 4000, encoding="utf-8")
    process = start(
        *command(replace(config, workers=2, segmenter="jieba")),
        "--log-interval",
        1,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stdout is not None
    assert any("ETA" in line for line in process.stdout)
    deadline = time.monotonic() + 60
    while not list(Path(f"{config.output_prefix}.shards").glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(
    config: PreprocessConfig, running: Popen[str], number: signal.Signals
) -> None:
    os.killpg(running.pid, number)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    first, second = stderr.splitlines()
    assert re.match(
        r"stopped: no output was written; \d+ finished shards are in .*/corpus.shards, .*same command", first
    )
    assert second == "preprocess_data.py: interrupted"
    assert outputs(config) == {}


def check_goes_on(config: PreprocessConfig) -> None:
    """What is left of a run is used by the next one, which writes what a run in one piece writes."""
    left = sorted(Path(f"{config.output_prefix}.shards").glob("*.json"))
    assert left
    done = run(*command(config))
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on: [1-9]\d* finished shards", done.stdout)  # those of the long file do not count
    written = outputs(config)
    for path in Path(config.output_prefix).parent.iterdir():
        assert path.is_file()
        path.unlink()
    preprocess(config)
    assert outputs(config) == written


def test_a_killed_run_goes_on(config: PreprocessConfig, running: Popen[str]) -> None:
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    assert outputs(config) == {}
    Path(config.input[0], "long.jsonl").unlink()
    check_goes_on(config)


def test_a_killed_worker_is_an_error(config: PreprocessConfig, running: Popen[str]) -> None:
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.kill()
        running.communicate()
        pytest.skip("no list of child processes")
    for child in children.read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
            break
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 2
    assert stderr.startswith("preprocess_data.py: error: a worker process died")
    assert "the same command goes on" in stderr
    assert outputs(config) == {}


def test_workers_end_with_their_parent(running: Popen[str]) -> None:
    running.kill()
    running.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("workers live on without their parent")


def test_real_text(config: PreprocessConfig, shared_data: Path) -> None:
    path = shared_data / "corpus" / "news_sogouc_mini.jsonl.gz"
    preprocess(replace(config, input=(str(path),), workers=2))
    dataset = IndexedDataset(f"{config.output_prefix}_text_sentence")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file)
    cut = load_segmenter("jieba")
    assert cut is not None
    assert dataset.num_documents == len(texts)
    for document in (0, len(texts) - 1):
        first = dataset.document_index[document]
        for i, sentence in enumerate(split_sentences(texts[document])):
            assert dataset.sentence(first + i).tolist() == tokenizer.encode(sentence)
            starts = dataset.word_starts(first + i)
            assert starts is not None
            assert starts.sum() <= len(cut(sentence))
