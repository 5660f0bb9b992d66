"""Tagging of named entities: CLUENER2020, four sets of columns, and a user's own files.

Files and types are those of CLUENER2020 (https://github.com/CLUEbenchmark/CLUENER2020), MSRA (Levow, 2006), People's
Daily, Weibo (Peng and Dredze, 2015; its second version) and Resume (Zhang and Yang, 2018). Hyper-parameters are those
that CLUENER2020 and PaddleNLP (ERNIE-1.0) publish; for Weibo and Resume, which have few texts, more and smaller steps.
"""

from __future__ import annotations

from typing import Any

from megatron.tasks.kinds.tagging import TAGGING, entity_lines, parse_text
from megatron.tasks.kinds.tags import tag_set
from megatron.tasks.sets.tagging_files import column_reader, own_tags, read_spans, read_tagged
from megatron.tasks.sets.tagging_metrics import macro_scores, micro_scores
from megatron.tasks.task import Hyperparameters, Task


def _tagging_task(**rest: Any) -> Task:
    """A task of entities, scored by their F1."""
    common = {
        "kind": TAGGING,
        "scores": micro_scores,
        "submission": entity_lines,
        "parse": parse_text,
        "text_columns": ("text",),
    }
    return Task(**{**common, **rest})


_CLUENER_TYPES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)
_NEWS_TYPES = ("LOC", "ORG", "PER")
_RESUME_TYPES = ("CONT", "EDU", "LOC", "NAME", "ORG", "PRO", "RACE", "TITLE")
_WEIBO_TYPES = tuple(f"{type_}.{kind}" for type_ in ("GPE", "LOC", "ORG", "PER") for kind in ("NAM", "NOM"))
_ENDINGS = ("json", "jsonl", "txt", "tsv", "conll", "bio", "bmes")

TAGGING_TASKS = (
    _tagging_task(
        name="cluener2020",
        labels=tag_set(_CLUENER_TYPES, "BIO"),
        read=read_spans,
        scores=macro_scores,
        test_files=(("test.json", "cluener_predict.json"),),
        defaults=Hyperparameters(epochs=4, global_batch_size=32, lr=2e-5),
    ),
    _tagging_task(
        name="msra_ner",
        labels=tag_set(_NEWS_TYPES, "BIO"),
        read=column_reader(),
        train_files=("train.txt", "msra_train_bio.txt"),
        dev_files=("dev.txt",),  # the published set has none
        test_files=(("test.txt", "msra_ner_predict.json"), ("msra_test_bio.txt", "msra_ner_predict.json")),
        defaults=Hyperparameters(epochs=3, global_batch_size=64, lr=5e-5),
    ),
    _tagging_task(
        name="peopledaily_ner",
        labels=tag_set(_NEWS_TYPES, "BIO"),
        read=column_reader(),
        train_files=("example.train",),
        dev_files=("example.dev",),
        test_files=(("example.test", "peopledaily_ner_predict.json"),),
        defaults=Hyperparameters(epochs=4, global_batch_size=128, lr=5e-5),
    ),
    _tagging_task(
        name="weibo_ner",
        labels=tag_set(_WEIBO_TYPES, "BIO"),
        read=column_reader(segmented=True),
        train_files=("weiboNER_2nd_conll.train",),
        dev_files=("weiboNER_2nd_conll.dev",),
        test_files=(("weiboNER_2nd_conll.test", "weibo_ner_predict.json"),),
        defaults=Hyperparameters(epochs=10, global_batch_size=16, lr=5e-5),
    ),
    _tagging_task(
        name="resume_ner",
        labels=tag_set(_RESUME_TYPES, "BMES"),
        read=column_reader(),
        train_files=("train.char.bmes",),
        dev_files=("dev.char.bmes",),
        test_files=(("test.char.bmes", "resume_ner_predict.json"),),
        defaults=Hyperparameters(epochs=5, global_batch_size=16, lr=5e-5),
    ),
    # Entities in a user's own files, whose training file says what the types are.
    _tagging_task(
        name="tagging",
        labels=(),
        read=read_tagged,
        complete=own_tags,
        train_files=tuple(f"train.{ending}" for ending in _ENDINGS),
        dev_files=tuple(f"dev.{ending}" for ending in _ENDINGS),
        test_files=tuple((f"test.{ending}", "tagging_predict.json") for ending in _ENDINGS),
        defaults=Hyperparameters(global_batch_size=32),
    ),
)
