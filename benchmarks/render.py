"""Put the tables of benchmarks/results/*.json into docs/performance.md, between the marks of each.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parallel(found: dict[str, Any]) -> Iterator[str]:
    """Results of parallel.py."""
    yield f"{found['machine']}.\n\n"
    formats = [name for name in ("fp32", "bf16") if name in found]
    header = [
        "",
        *(f"{name}: ms a step [least..most]" for name in formats),
        *(f"{n}: speedup" for n in formats),
    ]
    rows = []
    for case in found[formats[0]]:
        times = []
        for name in formats:
            low, median, high = found[name][case]["milliseconds"]
            times.append(f"{median:,.0f} [{low:,.0f}..{high:,.0f}]")
        rows.append([case, *times, *(f"{found[name][case]['speedup']:.2f}x" for name in formats)])
    yield table(header, rows)


def collectives(found: dict[str, Any]) -> Iterator[str]:
    """Results of collectives.py."""
    machine = found["machine"]
    yield f"{machine['cores']} cores, {machine['machine']}, torch {machine['torch']}; {found['ranks']} ranks.\n\n"
    ways = ("gloo", "shared memory", "floor")
    header = ["operation", "tensor", *(f"{way}, ms" for way in ways), "shared memory against gloo"]
    rows = []
    for case in found["cases"]:
        times = [case[way]["median_ms"] if way in case else math.nan for way in ways]
        shown = ["" if math.isnan(time) else f"{time:.3g}" for time in times]
        rows.append([case["operation"], case["tensor"], *shown, f"{times[0] / times[1]:.1f}x"])
    yield table(header, rows)


def checkpoint(found: dict[str, Any]) -> Iterator[str]:
    """Results of checkpoint.py."""
    yield f"{found['machine']}; {found['bytes'] / 1e9:.2f} GB.\n\n"
    rows = [
        [name, f"{median:.2f} [{low:.2f}..{high:.2f}]", f"{found['bytes'] / median / 1e6:,.0f}"]
        for name, (low, median, high) in found["seconds"].items()
        if not name.startswith("load")
    ]
    yield table(["", "s, median [least..most]", "MB/s"], rows)


SECTIONS = {"parallel": parallel, "collectives": collectives, "checkpoint": checkpoint}


def rendered(page: str) -> str:
    """The page with its tables made anew."""

    def section(match: re.Match[str]) -> str:
        found = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + "".join(SECTIONS[match[2]](found)) + match[3]

    return MARKED.sub(section, page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
