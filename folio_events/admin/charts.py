"""The geometry of charts: numbers in, SVG coordinates out; templates draw them.

All coordinates are text, since a template would write numbers as the reader's language does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from folio_events.counts import Series

#: Height of all drawings, in their own units; one unit of width is one span of time.
HEIGHT = 100.0
#: Share of a span's width that its bar takes.
_BAR = 0.8
#: Least height of what is not 0, or nobody would see one failure among thousands.
_LEAST = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What happened in one span of time, and where it is drawn.

    Attributes:
        at: Hour and minute of its begin.
        x: Where it begins.
        bar_x: Where its bars begin.
        handled: Top and height of a bar, or None where there was nothing.
        failed: The same, on top of it.
    """

    at: str
    published_count: int
    handled_count: int
    failed_count: int
    x: str
    bar_x: str
    handled: tuple[str, str] | None
    failed: tuple[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars of what receivers handled and failed on, and a line of what was published."""

    spans: tuple[Span, ...]
    #: In units of the drawing; each span is 1 wide.
    width: int
    bar_width: str
    #: Points of the line of what was published; empty where nothing was.
    line: str
    #: The number at the upper edge.
    top: int
    #: Times below the drawing, evenly spread, the last at its right edge.
    ticks: tuple[str, ...]
    published: int
    handled: int
    failed: int

    @property
    def half(self) -> int:
        """The number at half the height."""
        return self.top // 2


def chart(series: Series, receiver: str | None = None) -> Chart:
    """Draw counts over time.

    Args:
        series: What was counted.
        receiver: Only this one's, without what was published; None: everybody's.
    """
    if receiver is None:
        published, handled, failed = map(series.total, ("published", "handled", "failed"))
    else:
        none = [0] * len(series.starts)
        published = none
        handled = series.counts.get(("handled", receiver), none)
        failed = series.counts.get(("failed", receiver), none)
    top = _round_up(max(*published, *(a + b for a, b in zip(handled, failed, strict=True))))
    clock = [_clock(start) for start in series.starts]
    width = len(series.starts)
    return Chart(
        spans=tuple(
            _span(n, clock[n], (published[n], handled[n], failed[n]), top) for n in range(width)
        ),
        width=width,
        bar_width=f"{_BAR}",
        line=_line(published, top) if any(published) else "",
        top=top,
        ticks=(*(clock[n] for n in range(0, width, width // 4)), clock[-1]),
        published=sum(published),
        handled=sum(handled),
        failed=sum(failed),
    )


def _span(place: int, at: str, counts: tuple[int, int, int], top: int) -> Span:
    published, handled, failed = counts
    low = _height(handled, top)
    high = _height(failed, top)
    # What is drawn higher than it is takes its place from the bar below.
    low = min(low, HEIGHT - high)
    return Span(
        at=at,
        published_count=published,
        handled_count=handled,
        failed_count=failed,
        x=f"{place}",
        bar_x=f"{place + (1 - _BAR) / 2:.2f}",
        handled=(f"{HEIGHT - low:.2f}", f"{low:.2f}") if handled else None,
        failed=(f"{HEIGHT - low - high:.2f}", f"{high:.2f}") if failed else None,
    )


def _height(count: int, top: int) -> float:
    return max(HEIGHT * count / top, _LEAST) if count else 0.0


def _line(counts: Sequence[int], top: int) -> str:
    return " ".join(
        f"{place + 0.5},{HEIGHT - HEIGHT * count / top:.2f}" for place, count in enumerate(counts)
    )


def _round_up(number: int) -> int:
    """The next of 4, 10, 20, 40, 100, 200, 400 ...: halves of them are whole."""
    step = 1
    while True:
        for factor in (4, 10, 20):
            if number <= factor * step:
                return factor * step
        step *= 10


def _clock(moment: datetime) -> str:
    return f"{timezone.localtime(moment) if timezone.is_aware(moment) else moment:%H:%M}"
