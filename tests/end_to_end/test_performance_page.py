"""The tables of docs/performance.md are those of benchmarks/results."""

import runpy

from tests.commands import ROOT


def test_the_page_shows_the_results_that_are_kept() -> None:
    render = runpy.run_path(str(ROOT / "benchmarks" / "render.py"))
    page = render["PAGE"].read_text(encoding="utf-8")
    assert render["rendered"](page) == page
