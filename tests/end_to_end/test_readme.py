"""The commands of the README are run, and README.md and README.zh.md hold the same ones.

A `bash` or `python` block is run; an `sh` block stands for files or machines that a test does not have. `make test`
runs the commands in order with shorter runs, `make test-all` as they stand.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, run

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {
    r"--train-iters \d+": "--train-iters 4",
    r"--save-interval \d+": "--save-interval 2",
    r"--eval-interval \d+": "--eval-interval 4",
    r"--eval-iters \d+": "--eval-iters 1",
    r"--log-interval \d+": "--log-interval 2",
    r"--num-layers \d+": "--num-layers 1",
    r"--epochs \d+": "--epochs 1",
    r"--hidden-size \d+": "--hidden-size 32",
    r"(quickstart_corpus.py .*)": r"\1 --train 320 --dev 160",
}


def blocks(name: str, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of a document's fenced blocks in these languages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [(language, body) for language, body in FENCE.findall(text) if language in languages]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder in which the repository's commands run, but which takes what they write."""
    for name in ("pretrain_bert.py", "finetune_clue.py", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    return tmp_path


def run_blocks(workplace: Path, shorter: dict[str, str], timeout: float) -> None:
    """Run the README's blocks in order; what fails is shown with its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    commands = blocks("README.md", "bash", "python")
    assert len(commands) > 8
    for language, text in commands:
        for pattern, replacement in shorter.items():
            text = re.sub(pattern, replacement, text)
        interpreter = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        result = subprocess.run(
            [*interpreter, text], cwd=workplace, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert result.returncode == 0, f"{text}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


def test_both_languages_have_the_same_commands() -> None:
    languages = ("bash", "sh", "python", "text")
    assert blocks("README.md", *languages) == blocks("README.zh.md", *languages)


def test_both_languages_have_the_same_sections_flags_and_links() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    for pattern in (r"^#+ ", r"`(--[a-z-]+)", r"\]\(((?!README)[^)]*)\)", r"^\|"):
        found = [sorted(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert found[0] == found[1], pattern


def test_links_lead_to_files() -> None:
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_flags_exist() -> None:
    """Each flag named in the table of flags is one of pretrain_bert.py's."""
    result = run("pretrain_bert.py", "--help")
    rows = re.findall(r"^\| [^|]+ \| (`--.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    flags = {flag for row in rows for flag in re.findall(r"--[a-z0-9-]+", row)}
    assert len(flags) > 40
    assert [flag for flag in sorted(flags) if flag not in result.stdout] == []


@pytest.mark.skipif(importlib.util.find_spec("snownlp") is None, reason="the package snownlp is missing")
@pytest.mark.timeout(400)
def test_commands_run_shortened(workplace: Path) -> None:
    run_blocks(workplace, SHORTER, timeout=200)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snownlp") is None, reason="the package snownlp is missing")
@pytest.mark.timeout(3000)
def test_commands_run(workplace: Path) -> None:
    run_blocks(workplace, {}, timeout=1500)
