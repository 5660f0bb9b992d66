"""The small corpus, made once and copied to each test's folder."""

import shutil
from pathlib import Path

import pytest

from tests.training.corpus import write_corpus


@pytest.fixture(scope="session")
def corpus_made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture
def corpus(corpus_made_once: Path, tmp_path: Path) -> Path:
    """A folder with corpus_text_sentence.* and vocab.txt, where a run may write."""
    shutil.copytree(corpus_made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path
