"""tools/doctor.py: usable where it is, and what is wrong with a line of advice where it is not."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.mpu.context import ParallelContext
from megatron.mpu.layout import Layout
from tests.commands import ROOT
from tests.ranks import run_ranks
from tools.doctor import link_checks, print_checks, requirement_checks


def doctor(root: Path, *launcher: str) -> tuple[int, str]:
    """Exit code and output of root/tools/doctor.py."""
    command = [sys.executable, *launcher, str(root / "tools" / "doctor.py"), "--mebibytes", "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    return result.returncode, result.stdout + result.stderr


def test_this_installation_is_usable() -> None:
    code, out = doctor(ROOT)
    assert code == 0 and "usable" in out.splitlines()[-1], out
    for name in ("Python", "torch", "megatron._C", "OpenMP", "shared memory", "GPU", "gloo loopback"):
        assert f"  {name}" in out, name
    assert "fails" not in out


def test_under_torchrun_the_links_are_measured() -> None:
    code, out = doctor(ROOT, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert code == 0, out
    assert "all ranks have the same code and versions" in out and "2 ranks over gloo: all-reduce" in out


def test_with_broken_compiled_helpers_it_says_make_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "megatron", tmp_path / "megatron", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "megatron" / "_C.py").write_text("raise ImportError('undefined symbol: x')")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    code, out = doctor(tmp_path)
    line = next(line for line in out.splitlines() if "megatron._C" in line)
    assert code == 1 and line.startswith("fails") and "undefined symbol" in line and "-> make install" in out, out
    assert "broken" in out.splitlines()[-1]


def test_versions_that_are_missing_or_too_old(capsys: pytest.CaptureFixture[str]) -> None:
    required = ["numpy>=99.1", "no-such-package>=1.0", "torch>=2.0"]
    unasked = ['x>=1; extra == "dev"', 'y>=1; python_version < "3.1"']
    assert not print_checks(requirement_checks(required + unasked))
    out = capsys.readouterr().out
    assert "needs 99.1 or newer" in out and "pip install 'no-such-package>=1.0'" in out and "ok     torch" in out
    assert " x " not in out and " y " not in out


def links(context: ParallelContext) -> list[str]:
    """The links between three ranks as if they were three hosts."""
    processes = [SimpleNamespace(host=host) for host in "abc"]
    job: Any = SimpleNamespace(processes=processes)
    return [check.name for check in link_checks(dataclasses.replace(context, job=job), 1)]


def test_every_node_is_measured_with_the_next() -> None:
    assert run_ranks(Layout(data=3), links) == [["all ranks", "a - b", "b - c", "c - a"]] * 3
