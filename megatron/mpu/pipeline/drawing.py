"""A timeline as text and as an SVG picture. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.mpu.pipeline.plan import Action, Kind
from megatron.mpu.pipeline.timeline import Timeline

_LETTER = {Kind.FORWARD: "F", Kind.BACKWARD: "B", Kind.BACKWARD_INPUT: "I", Kind.BACKWARD_WEIGHT: "W"}

_COLOUR = {
    Kind.FORWARD: "#8ab4e8",
    Kind.BACKWARD: "#8fd19e",
    Kind.BACKWARD_INPUT: "#8fd19e",
    Kind.BACKWARD_WEIGHT: "#f2c879",
}
_WIDTH, _LEFT, _ROW, _PANEL, _MARGIN = 1200.0, 70.0, 24.0, 34.0, 10.0  # pixels


def label(action: Action, chunks: int) -> str:
    """Short name of an action: letter of its kind, micro-batch, and the chunk where there are several."""
    return f"{_LETTER[action.kind]}{action.micro_batch}" + (f".{action.chunk}" if chunks > 1 else "")


def text_width(timeline: Timeline, chunks: int) -> int:
    """Characters that a timeline in unit time takes: a forward of one chunk has room for the longest label."""
    longest = max((len(label(action, chunks)) for actions in timeline.plan for action in actions), default=0)
    return round(timeline.makespan * chunks) * (longest + 1)


def draw_text(timeline: Timeline, *, chunks: int, width: int) -> list[str]:
    """One line a stage, `width` characters for the whole time; an action is as long as it takes, dots are idle time."""
    lines = []
    origin, makespan = timeline.origin, timeline.makespan
    for stage, actions in enumerate(timeline.plan):
        line = ["."] * width
        for action, start, finish in zip(actions, timeline.start[stage], timeline.finish[stage], strict=True):
            begin, end = (round((time - origin) / makespan * width) if makespan else 0 for time in (start, finish))
            length = end - begin
            line[begin:end] = (label(action, chunks).ljust(length - 1, "-")[: max(length - 1, 1)] + " ")[:length]
        lines.append(f"stage {stage:<2} |{''.join(line)}|")
    return lines


def draw_svg(panels: Sequence[tuple[str, Timeline]], *, chunks: int) -> str:
    """An SVG picture of timelines below each other, all over the same width: (title, timeline) pairs.

    Colours are kinds of action, darker for later chunks; a tooltip gives an action's name, start and finish. Titles
    are taken as they are: no markup characters.
    """
    body: list[str] = []
    top = _MARGIN
    for title, timeline in panels:
        body.append(f'<text x="{_MARGIN:g}" y="{top + 18:g}" font-size="15">{title}</text>')
        top += _PANEL
        for stage in range(len(timeline.plan)):
            body += _svg_row(timeline, stage, chunks, top)
            top += _ROW
        top += _MARGIN
    drawn = {action.kind for _, timeline in panels for actions in timeline.plan for action in actions}
    for index, kind in enumerate(kind for kind in Kind if kind in drawn):
        x = _LEFT + 190 * index
        body.append(f'<rect x="{x:g}" y="{top:g}" width="16" height="16" fill="{_COLOUR[kind]}" stroke="#555"/>')
        body.append(f'<text x="{x + 22:g}" y="{top + 13:g}">{kind.value}</text>')
    width, height = _LEFT + _WIDTH + _MARGIN, top + 16 + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _svg_row(timeline: Timeline, stage: int, chunks: int, top: float) -> list[str]:
    scale = _WIDTH / timeline.makespan if timeline.makespan else 0.0
    height = _ROW - 4
    row = [
        f'<text x="{_MARGIN:g}" y="{top + 15:g}">stage {stage}</text>',
        f'<rect x="{_LEFT:g}" y="{top:g}" width="{_WIDTH:g}" height="{height:g}" fill="#eee"/>',
    ]
    for action, start, finish in zip(timeline.plan[stage], timeline.start[stage], timeline.finish[stage], strict=True):
        x, width = _LEFT + (start - timeline.origin) * scale, (finish - start) * scale
        opacity = 1.0 - 0.6 * (chunks - 1 - action.chunk) / max(chunks - 1, 1)
        row.append(
            f'<rect x="{x:.2f}" y="{top:g}" width="{width:.2f}" height="{height:g}" fill="{_COLOUR[action.kind]}" '
            f'fill-opacity="{opacity:.2f}" stroke="#555" stroke-width="0.5"><title>{action}: '
            f"{start - timeline.origin:g} to {finish - timeline.origin:g}</title></rect>"
        )
        name = label(action, chunks)[1:]
        if width > 7 * len(name):
            row.append(
                f'<text x="{x + width / 2:.2f}" y="{top + 14:g}" text-anchor="middle" pointer-events="none">'
                f"{name}</text>"
            )
    return row
