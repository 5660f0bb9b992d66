"""Raw text to indexed token files: sentences, token ids, word starts, sources, and a data card of what is in them.

The input is divided into shards by its files alone; workers encode shards into files of their own, which are joined at
the end. So the outputs are the same bytes for any number of workers, and a run that was stopped, however hard, goes on
with the shards that are missing when the command is given again.
"""

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from megatron import _C
from megatron.data.card import make_card, summary, versions, write_card
from megatron.data.cleaning import Removed, make_character_cleaner
from megatron.data.corpus import BadLine, find_inputs
from megatron.data.decisions import decide
from megatron.data.division import Shard, divide, is_large, part_of, shard_bytes, spool
from megatron.data.duplicates import signatures
from megatron.data.encode import Counts
from megatron.data.indexed import token_dtype
from megatron.data.join import Part, join_datasets
from megatron.data.preprocess_config import PreprocessConfig, check_preprocess_config
from megatron.data.progress import copy_progress, make_progress, progress_lines
from megatron.data.ray_cluster import ray_map
from megatron.data.segmenter import load_segmenter
from megatron.data.shard_store import LOCK, SHOWN_BAD_LINES, Record, ShardStore, file_key, lines_before
from megatron.data.shards import make_shard_encoder
from megatron.data.survey import make_surveyor
from megatron.data.tokenizer import Tokenizer, load_tokenizer
from megatron.data.workers import ordered_map
from megatron.errors import UserError
from megatron.files import take_lock


def preprocess(config: PreprocessConfig) -> None:
    """Run `tools/preprocess_data.py`. Raises `UserError` for whatever is wrong with options, files or lines."""
    paths = find_inputs(config.input)
    check_preprocess_config(config, paths)
    tokenizer = load_tokenizer(config.tokenizer_type, config.vocab_file, config.tokenizer_model)
    # So that a mistake shows here, not in every worker.
    make_character_cleaner(config.normalize, config.simplify)
    if config.user_dict is not None:
        load_segmenter(config.segmenter, config.user_dict)
    if config.drop_near_duplicates is not None:
        signatures([])
    size = shard_bytes(paths)
    shards = divide(paths, size)
    if config.part is not None:
        shards = part_of(shards, *config.part)
    facts = _facts(config, tokenizer, size)
    keys = tuple(file_key(path, *facts) for path in paths)
    folder = Path(f"{config.base}.shards")
    survey = None
    if config.needs_survey:
        survey = ShardStore(folder=folder / "survey", file_keys=keys, takes_bad_lines=config.skip_bad_lines)
        # A document may be left out because of one in any other file.
        keys = tuple(file_key(path, *facts, *keys) for path in paths)
    store = ShardStore(folder=folder, file_keys=keys, takes_bad_lines=config.skip_bad_lines)
    with _work_folder(store.folder), _sigterm_as_interrupt():
        try:
            if survey is None:
                shutil.rmtree(folder / "survey", ignore_errors=True)
            else:
                survey.folder.mkdir(exist_ok=True)
                print("first pass: a survey of the input", flush=True)
                surveyed = _work_on_missing(partial(make_surveyor, config, survey), config, survey, shards, size)
                for column in range(len(config.json_keys)):
                    decide(config, survey, [shard for shard, _ in surveyed], column)
            make = partial(make_shard_encoder, config, store, survey)
            finished = _work_on_missing(make, config, store, shards, size)
            _write_outputs(config, paths, tokenizer, store, finished)
        except UserError as error:
            raise UserError(f"{error}; {_what_is_kept(store)}") from None
        except KeyboardInterrupt:
            print(f"stopped: {_what_is_kept(store)}", file=sys.stderr, flush=True)
            raise
        _remove(store.folder)


def _facts(config: PreprocessConfig, tokenizer: Tokenizer, size: int) -> list[str]:
    """All that decides what a shard holds, besides its input file."""
    recipe = config.recipe()
    for name in ("input", "output_prefix", "skip_bad_lines"):
        del recipe[name]
    files = [
        Path(__file__).with_name(name) for name in sorted(os.listdir(Path(__file__).parent)) if name.endswith(".py")
    ]
    files += [Path(_C.__file__)]
    files += [Path(path) for path in (config.tokenizer_model, config.user_dict) if path is not None]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return [repr(recipe), repr(versions(config)), tokenizer.vocabulary_hash, str(size), *digests]


def _work_on_missing(
    make: Callable[[], Callable[[Shard], Record]],
    config: PreprocessConfig,
    store: ShardStore,
    shards: Sequence[Shard],
    size: int,
) -> list[tuple[Shard, Record]]:
    """Do what `make` makes to all shards that are not done.

    Returns all shards in order, large files as their pieces, with their records.
    """
    disk_bytes = sum(shard.disk_bytes for shard in shards)
    kept, removed = store.remove_stale()
    files = len({shard.path for shard in shards})
    print(f"{files} file{'s'[: files > 1]}, {disk_bytes / 1e6:,.1f} MB; {config.workers} workers", flush=True)
    if kept:
        print(f"going on: {kept} finished shards are in {store.folder}", flush=True)
    if removed:
        print(f"{removed} shards of other inputs, options or code were in {store.folder}: removed", flush=True)
    divided: list[Shard] = []
    progress = make_progress(store.folder)

    def missing() -> Iterator[Shard]:
        for shard in shards:
            large = is_large(shard, size)
            for piece in spool(shard, size, store.folder, store.finished) if large else [shard]:
                divided.append(piece)
                if store.read(piece) is None:
                    yield piece
                else:
                    progress(0, 0, 0, piece.disk_bytes)

    with (
        progress_lines(store.folder, disk_bytes, config.log_interval),
        closing(_map(make, missing(), config)) as records,
    ):
        for _ in records:
            pass
    finished = [(shard, store.read(shard)) for shard in divided]
    return [(shard, record) for shard, record in finished if record is not None]


def _map(
    make: Callable[[], Callable[[Shard], Record]], shards: Iterable[Shard], config: PreprocessConfig
) -> Generator[Record, None, None]:
    if config.ray is None:
        return ordered_map(make, shards, workers=config.workers)
    return ray_map(make, shards, workers=config.workers, address=config.ray)


def _write_outputs(
    config: PreprocessConfig,
    paths: Sequence[str],
    tokenizer: Tokenizer,
    store: ShardStore,
    finished: Sequence[tuple[Shard, Record]],
) -> None:
    """Join the shards of each key and write its card."""
    before = list(_lines_before(finished))
    skipped = sum(record.skipped for _, record in finished)
    _print_bad_lines(finished, before)
    totals = [Counts() for _ in config.json_keys]
    removed = [Removed() for _ in config.json_keys]
    for _, record in finished:
        for i, (total, removed_total) in enumerate(zip(totals, removed, strict=True)):
            total.add(record.counts[i])
            removed_total.add(record.removed[i])
    for key, total in zip(config.json_keys, totals, strict=True):
        if total.tokens == 0:
            shutil.rmtree(store.folder)  # no run can use it
            raise UserError(f"no text under key {key!r} in {', '.join(config.input)}")
    for i, (key, prefix, total) in enumerate(zip(config.json_keys, config.prefixes(), totals, strict=True)):
        parts = [
            Part(prefix=store.prefix(shard, i), lines_before=lines)
            for (shard, record), lines in zip(finished, before, strict=True)
            if record.counts[i].documents
        ]
        copied = copy_progress(total.tokens * token_dtype(tokenizer.vocab_size).itemsize)
        join_datasets(parts, prefix, words=True, sources=True, copied=copied)
        card = make_card(config, key, tokenizer, total, removed[i], skipped, paths)
        write_card(prefix, card)
        print(summary(prefix, card), flush=True)


def _lines_before(finished: Sequence[tuple[Shard, Record]]) -> Iterator[int]:
    """Lines of the input file before each shard. A part of a run may begin in the middle of a file."""
    path, lines = "", 0
    for shard, record in finished:
        if shard.path != path:
            path, lines = shard.path, lines_before(shard)
        yield lines
        lines += record.lines


def _print_bad_lines(finished: Sequence[tuple[Shard, Record]], before: Sequence[int]) -> None:
    skipped = 0
    for (shard, record), lines in zip(finished, before, strict=True):
        for number, reason in record.bad_lines[: SHOWN_BAD_LINES - skipped]:
            skipped += 1
            more = "; further ones are only counted" if skipped == SHOWN_BAD_LINES else ""
            print(f"skipped: {BadLine(shard.path, lines + number, reason)}{more}", file=sys.stderr, flush=True)


def _what_is_kept(store: ShardStore) -> str:
    done = sum(1 for _ in store.folder.rglob("*.json"))
    if done == 0:
        return "nothing was written"
    return (
        f"no output was written; {done} finished shards are in {store.folder}, and the same command goes on with them"
    )


def _remove(folder: Path) -> None:
    """Remove a folder with large files, whose pages the system takes long to drop: several at a time."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(os.unlink, folder.glob("*.bin")))
    shutil.rmtree(folder)


@contextmanager
def _work_folder(folder: Path) -> Iterator[None]:
    """The folder of the shards, locked; it stays behind only if it holds a finished shard."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+b")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    with lock:
        with suppress(OSError):  # no locks here
            if take_lock(lock.fileno()):
                raise UserError(f"another process preprocesses into {folder}: wait for it, or end it")
        try:
            yield
        finally:
            if not any(folder.rglob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """What ends a batch job ends the run as Ctrl-C does: clean, and with a word on how to go on."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
