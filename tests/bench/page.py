"""The figures as a page, so that no number is copied by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = """\
# Figures

Written by `make bench`, with the [chart](chart.svg) and [results.json](results.json) beside it;
what is measured and how to read it stands in [performance](../explanation/performance.md).

| figure | value | control | ratio | goal | met |
|---|---|---|---|---|---|
"""


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of all results."""
    return _HEAD + "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["quartiles"]
    control = "" if row["control"] is None else f"{row['against']}: {_number(row['control'])}"
    met = "" if row["met"] is None else "yes" if row["met"] else "**no**"
    cells = (
        row["name"],
        f"{_number(row['value'])} {row['unit']} ({_number(low)} to {_number(high)})",
        control,
        "" if row["ratio"] is None else row["ratio"],
        row["goal"] or "",
        met,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
