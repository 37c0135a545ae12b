"""The chart beside the results: one bar for each ratio, its quartiles, and the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_WIDTH, _LABELS, _ROW = 1000, 470, 24
_MET, _MISSED, _PLAIN = "#2e7d5b", "#b3442e", "#6b7a8c"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the chart of all results that have a control."""
    shown = [row for row in rows if row["ratio"] is not None]
    top = 62
    height = top + _ROW * len(shown) + 30
    # Ratios far above 1 would leave the others no room.
    longest = min(max((row["ratio_quartiles"][1] for row in shown), default=1), 4)
    scale = (_WIDTH - _LABELS - 130) / longest
    notes = sorted({row["note"] for row in shown if row["note"]})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        "<title>folio_events against its controls</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, "folio_events against its controls, ratio of each figure", size=16),
        _text(12, 44, "; ".join(["bar: median, line: quartiles, tick: goal", *notes]), "#555555"),
    ]
    one = _LABELS + scale
    parts.append(
        f'<line x1="{one:.0f}" y1="{top - 8}" x2="{one:.0f}" y2="{height - 24}" '
        'stroke="#999999" stroke-dasharray="3 3"/>'
    )
    parts.append(_text(one - 4, height - 8, "1", "#555555"))
    for number, row in enumerate(shown):
        parts += _bar(row, top + number * _ROW, scale, longest)
    parts.append("</svg>\n")
    path.write_text("\n".join(parts))


def _bar(row: Mapping[str, Any], y: int, scale: float, longest: float) -> list[str]:
    colour = {True: _MET, False: _MISSED, None: _PLAIN}[row["met"]]
    ratio = row["ratio"]
    width = min(ratio, longest) * scale
    low, high = (_LABELS + min(edge, longest) * scale for edge in row["ratio_quartiles"])
    parts = [
        _text(_LABELS - 8, y + 15, row["name"], anchor="end"),
        f'<rect x="{_LABELS}" y="{y + 3}" width="{width:.1f}" height="16" fill="{colour}"/>',
        f'<line x1="{low:.1f}" y1="{y + 11}" x2="{high:.1f}" y2="{y + 11}" stroke="#222222"/>',
    ]
    kind, _, limit = str(row["goal"] or "").partition(" at ")
    if kind == "ratio":
        x = _LABELS + min(float(limit.split()[-1]), longest) * scale
        parts.append(
            f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 22}" '
            'stroke="#222222" stroke-width="2"/>'
        )
    text = f"{ratio:g}  ({row['value']:g} {row['unit']})"
    parts.append(_text(max(_LABELS + width, high) + 6, y + 15, text, "#333333"))
    return parts


def _text(
    x: float, y: float, text: str, colour: str = "#222222", *, size: int = 12, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{colour}" font-size="{size}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
