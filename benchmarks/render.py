"""Put the tables of benchmarks/results/*.json into docs/performance.md, between the marks of each.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import math
import re
import statistics
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
    rows = []
    for name, (low, median, high) in found["seconds"].items():
        moved = found["bytes"] / 3 if "weights" in name else found["bytes"]  # the moments are the rest
        rows.append([name, f"{median:.2f} [{low:.2f}..{high:.2f}]", f"{moved / median / 1e6:,.0f}"])
    yield table(["", "s, median [least..most]", "MB/s"], rows)


def preprocess(found: dict[str, Any]) -> Iterator[str]:
    """Results of preprocess.py."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"{_cores(found)}; {versions}; {found['megabytes']:.1f} MB of text. jieba's dictionary loads in "
    yield f"{found['dictionary_load_seconds']:.2f} s.\n\n"
    variants = found["variants"]
    ours = next(iter(variants.values()))["megabytes_a_second"]
    rows = [
        [
            name,
            f"{row['megabytes_a_second']:.2f} [{row['slowest']:.2f}..{row['fastest']:.2f}]",
            f"{ours / row['megabytes_a_second']:.1f}x",
        ]
        for name, row in variants.items()
    ]
    yield table(["", "MB/s [slowest..fastest]", "ours against it"], rows)


def preprocess_workers(found: dict[str, Any]) -> Iterator[str]:
    """Results of preprocess_workers.py."""
    yield f"{_cores(found)}; {found['megabytes']:,.0f} MB of lines.\n\n"
    rows = []
    for workers, seconds in found["seconds"].items():
        low, median, high = min(seconds), statistics.median(seconds), max(seconds)
        rows.append([workers, f"{median:.1f} [{low:.1f}..{high:.1f}]", f"{found['megabytes'] / median:.0f}"])
    yield table(["workers", "s of the whole command", "MB/s"], rows)
    start = statistics.median(found["start_seconds"]["1"])
    yield f"\nTwo against one: {found['ratio']:.2f}x; without the start of Python and workers ({start:.1f} s), "
    yield f"{found['ratio_without_start']:.2f}x.\n"


def samples(found: dict[str, Any]) -> Iterator[str]:
    """Results of samples.py."""
    yield f"{_cores(found)}; length {found['seq_length']}.\n\n"
    rows = [
        [name, f"{row['median']:,.0f} [{row['least']:,.0f}..{row['most']:,.0f}]"]
        for name, row in found["samples a second"].items()
    ]
    yield table(["", "samples a second [least..most]"], [*rows, ["ours against it", f"{found['ratio']:,.0f}x"]])


def sample_index(found: dict[str, Any]) -> Iterator[str]:
    """Results of sample_index.py."""
    yield f"{_cores(found)}.\n\n"
    rows = [
        [
            f"{case['sentences'] / 1e6:.0f} M sentences, length {case['seq_length']}"
            + (", with the file" if case["file"] else ""),
            f"{case['ours, seconds']['median']:.3f}",
            f"{case['megatron-core, seconds']['median']:.3f}",
            f"{case['ratio']:.2f}x",
        ]
        for case in found["cases"]
    ]
    yield table(["", "ours, s", "megatron-core, s", "ours against it"], rows)
    billion = found.get("billion")
    if billion is not None:
        yield (
            f"\n{billion['samples']:,} samples over {billion['sentences']:,} sentences in real files: "
            f"{billion['build CPU seconds']:.0f} s of CPU to build, {billion['seconds from the cache']:.0f} s from the "
            f"cache, at most {billion['resident GB at most']:.2f} GB resident, "
            f"{billion['bytes a sample']} bytes a sample.\n"
        )


def _cores(found: dict[str, Any]) -> str:
    return f"{found['machine']['cores']} cores, {found['machine']['machine']}"


SECTIONS = {
    "parallel": parallel,
    "collectives": collectives,
    "checkpoint": checkpoint,
    "preprocess": preprocess,
    "preprocess_workers": preprocess_workers,
    "samples": samples,
    "sample_index": sample_index,
}


def rendered(page: str) -> str:
    """The page with its tables made anew."""

    def section(match: re.Match[str]) -> str:
        found = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + "".join(SECTIONS[match[2]](found)) + match[3]

    return MARKED.sub(section, page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
