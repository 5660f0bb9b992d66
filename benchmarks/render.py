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
FIGURE = PAGE.with_name("figures") / "quality.svg"
MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def step(found: dict[str, Any]) -> Iterator[str]:
    """Results of step.py."""
    yield f"{_processor(found)}.\n\n"
    times, speeds = [], []
    for name, shape in found["shapes"].items():
        rows = shape["variants"]
        for fmt in shape["ceiling_seconds"]:
            own = rows[f"ours, {fmt}"]["seconds"]["median"]
            for variant in (variant for variant in rows if fmt in variant):
                row = rows[variant]
                low, median, high = (1e3 * row["seconds"][key] for key in ("quarter", "median", "three_quarters"))
                times.append(
                    [
                        f"{name}: {variant}",
                        f"{median:,.0f} [{low:,.0f}..{high:,.0f}]",
                        f"{row['tokens_a_second']:,.0f}",
                        f"{row['seconds']['median'] / own:.2f}x",
                        f"{row['minor_page_faults']:,.0f}",
                    ]
                )
            least = sum(shape["ceiling_seconds"][fmt].values())
            speeds.append(
                [
                    f"{name}, {fmt}",
                    f"{shape['gigaflop']:.1f}",
                    f"{shape['gigaflop'] / own:,.0f}",
                    f"{1e3 * least:,.0f}",
                    f"{least / own:.0%}",
                    f"{max(_differences(shape['losses'], fmt)):.0e}",
                ]
            )
    yield table(["", "ms a step [quartiles]", "tokens/s", "ours against it", "minor page faults a step"], times)
    yield "\n"
    header = ["ours", "model GFLOP", "GFLOP/s", "products alone, ms", "of their speed", "largest difference of a loss"]
    yield table(header, speeds)
    name, shape = next(iter(found["shapes"].items()))
    groups = shape["groups_ms"]
    yield f"\nWhere the time of our step goes ({name}, under the profiler), ms:\n\n"
    names = dict.fromkeys(group for fmt in groups for group in groups[fmt])
    yield table(["", *groups], [[group, *(f"{groups[fmt].get(group, 0):.1f}" for fmt in groups)] for group in names])


def _differences(losses: dict[str, list[float]], fmt: str) -> list[float]:
    """Relative differences of our losses to those of the peer in fp32."""
    pairs = zip(losses[f"ours, {fmt}"], losses["peer, fp32"], strict=True)
    return [abs(ours - theirs) / theirs for ours, theirs in pairs]


def memory(found: dict[str, Any]) -> Iterator[str]:
    """Results of memory.py."""
    shape, variants = found["shape"], found["variants"]
    yield f"{_processor(found)}; {shape['samples']} x {shape['sequence']} tokens.\n\n"
    rows = []
    for name, row in variants.items():
        own = variants["ours, bf16" if "bf16" in name else "ours, fp32"]
        mark = " (extrapolated)" if row["extrapolated"] else ""
        share = f"{own['of_the_step'] / row['of_the_step']:.2f}"
        rows.append([name + mark, f"{row['peak'] / 1e9:.2f}", f"{row['of_the_step'] / 1e9:.2f}", share])
    yield table(["", "peak of the process, GB", "of the step, GB", "ours of it"], rows)
    accounts = {name: row for name, row in variants.items() if row["account"]}
    yield "\nWhat that of ours is, GB:\n\n"
    kinds = {
        "weights": "weights",
        "masters": "fp32 masters",
        "gradients": "gradients",
        "moments": "moments of Adam",
        "activations, layers": f"kept for the backward by {shape['layers']} layers",
        "activations, embeddings and heads": "kept by embeddings, heads and losses",
        "largest temporary": "largest temporary of the backward",
    }
    sizes = {text: [row["account"][kind] for row in accounts.values()] for kind, text in kinds.items()}
    rest = [row["of_the_step"] - sum(row["account"][kind] for kind in kinds) for row in accounts.values()]
    sizes["other temporaries and the allocator"] = rest
    lines = [[text, *(f"{size / 1e9:.3f}" for size in row)] for text, row in sizes.items()]
    yield table(["", *accounts], lines)


def lengths(found: dict[str, Any]) -> Iterator[str]:
    """Results of lengths.py."""
    yield f"{_processor(found)}; {found['texts']:,} texts of {found['mean_length']:.1f} tokens.\n\n"
    rows = []
    for way, padded in found["padded_over_real_tokens"].items():
        epochs = [result["seconds_of_an_epoch"][way] for result in found["formats"].values()]
        rows.append(
            [
                way,
                f"{padded:.2f}",
                *(f"{e['median']:.1f} [{e['quarter']:.1f}..{e['three_quarters']:.1f}]" for e in epochs),
                f"{found['learnt'][way]['accuracy']:.2%}",
                f"{found['learnt'][way]['loss']:.3f}",
            ]
        )
    times = [f"{name}: s an epoch [quartiles]" for name in found["formats"]]
    yield table(["", "padded / real tokens", *times, "dev accuracy", "dev loss"], rows)
    ratios = ", ".join(f"{result['ratio']:.2f}x in {name}" for name, result in found["formats"].items())
    worst = found["relative_differences"]
    yield f"\nFaster by {ratios}. The same batches with and without padding differ by {worst['loss']:.0e} "
    yield f"in the loss and {worst['gradient_norm']:.0e} in the norm of the gradient.\n"


def quality(found: dict[str, Any]) -> Iterator[str]:
    """Results of quality.py."""
    yield f"{_processor(found)}; {found['steps']} steps.\n\n"
    names = dict.fromkeys(run["name"] for run in found["runs"])
    rows = []
    for name in names:
        ends = [run["points"][-1][2] for run in found["runs"] if run["name"] == name]
        own = found["seconds"][f"ours, {'bf16' if 'bf16' in name else 'fp32'}"]
        seconds = found["seconds"][name]
        rows.append([name, ", ".join(f"{end:.3f}" for end in ends), f"{seconds:,.0f}", f"{seconds / own:.2f}x"])
    yield table(["", "MLM loss in the end, by seed", "s", "ours against it"], rows)
    for name, agreement in found["agreement"].items():
        yield f"\nOver the last quarter of the {name} runs, the means of both sides are {agreement['gap']:.3f} apart, "
        yield f"the two seeds of one side up to {agreement['noise']:.3f}.\n"
    yield f"\n![MLM loss over steps and over seconds](figures/{FIGURE.name})\n"


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


def gpu(found: dict[str, Any]) -> Iterator[str]:
    """Results of gpu.py on one GPU."""
    machine, ceilings = found["machine"], found["ceilings"]
    yield f"\n{machine['device']}, torch {machine['torch']}. Ceilings: a product of 8192^3 in bf16 at "
    yield f"{ceilings['product']:,.0f} TFLOP/s, a copy at {ceilings['copy']:,.0f} GB/s. Products of the layers and "
    yield "attention, TFLOP/s:\n\n"
    shapes = {name: row for name, row in ceilings.items() if isinstance(row, dict)}
    parts = list(next(iter(shapes.values())))
    yield table(["", *parts], [[name, *(f"{row[part]:,.0f}" for part in parts)] for name, row in shapes.items()])
    yield "\nSteps in bf16, dropout 0.1, without recomputation:\n\n"
    rows = []
    for model, variants in found.get("steps", {}).items():
        own = max(row["tokens_per_second"] for who, row in variants.items() if who.startswith("ours"))
        for who, row in variants.items():
            share = f"{row['of_product']:.0%}" if "of_product" in row else ""
            rows.append(
                [
                    f"{model}: {who}",
                    f"{row['samples']}",
                    f"{row['tokens_per_second']:,.0f}",
                    share,
                    f"{row['peak_gb']:.1f}",
                    f"{own / row['tokens_per_second']:.2f}x",
                ]
            )
    yield table(["", "samples", "tokens/s", "of the product's FLOP/s", "peak GB", "our best against it"], rows)
    yield "\nKernels in bf16, by rows x columns:\n\n"
    rows = [
        [
            f"{kernel}, {shape}",
            f"{row['microseconds']:,.0f}",
            f"{row['of_copy']:.0%}",
            f"{row['torch_compile_against_it']:.2f}x",
        ]
        for shape, kernels in found.get("kernels", {}).items()
        for kernel, row in kernels.items()
    ]
    yield table(["", "microseconds", "of the copy's bytes/s", "torch.compile's time against it"], rows)


def _processor(found: dict[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processor']}, {machine['threads']} threads; {versions}"


def _cores(found: dict[str, Any]) -> str:
    return f"{found['machine']['cores']} cores, {found['machine']['machine']}"


SECTIONS = {
    "step": step,
    "memory": memory,
    "lengths": lengths,
    "quality": quality,
    "parallel": parallel,
    "collectives": collectives,
    "checkpoint": checkpoint,
    "preprocess": preprocess,
    "preprocess_workers": preprocess_workers,
    "samples": samples,
    "sample_index": sample_index,
    "gpu": gpu,
}


def rendered(page: str) -> str:
    """The page with its tables made anew; a section without a results file stays as it is.

    A section has one file of its name, or one a machine: NAME-MACHINE.json.
    """

    def section(match: re.Match[str]) -> str:
        name = match[2]
        results = [*RESULTS.glob(f"{name}.json"), *sorted(RESULTS.glob(f"{name}-*.json"))]
        if not results:
            return match[0]
        found = [json.loads(path.read_text(encoding="utf-8")) for path in results]
        return match[1] + "".join(text for one in found for text in SECTIONS[name](one)) + match[3]

    return MARKED.sub(section, page)


if __name__ == "__main__":
    if (RESULTS / "quality.json").is_file():
        from curves import draw  # matplotlib is for this alone

        draw(json.loads((RESULTS / "quality.json").read_text(encoding="utf-8")), FIGURE)
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
