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
    """What happened in one span of time."""

    #: Hour and minute of its begin.
    at: str
    published: int
    handled: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars of what receivers handled, on them what they failed on, and a line of what was published.

    Attributes:
        width: In units of the drawing; each span is 1 wide.
        handled_bars: Outlines of all bars of what was handled.
        failed_bars: The same, on top of them.
        line: Points of the line of what was published; empty where nothing was.
        top: The number at the upper edge.
        ticks: Times below the drawing, evenly spread, the last at its right edge.
        published: Of all spans together, as what follows.
    """

    spans: tuple[Span, ...]
    width: int
    handled_bars: str
    failed_bars: str
    line: str
    top: int
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
    width = len(clock)
    highs = [_height(count, top) for count in failed]
    # What is drawn higher than it is takes its place from the bar below.
    lows = [
        min(_height(count, top), HEIGHT - high) for count, high in zip(handled, highs, strict=True)
    ]
    return Chart(
        spans=tuple(
            Span(at=at, published=a, handled=b, failed=c)
            for at, a, b, c in zip(clock, published, handled, failed, strict=True)
        ),
        width=width,
        handled_bars=_bars(lows, [0.0] * width),
        failed_bars=_bars(highs, lows),
        line=_line(published, top) if any(published) else "",
        top=top,
        ticks=(*clock[:: max(width // 4, 1)], clock[-1]),
        published=sum(published),
        handled=sum(handled),
        failed=sum(failed),
    )


def _bars(heights: Sequence[float], floors: Sequence[float]) -> str:
    return "".join(
        f"M{place + (1 - _BAR) / 2:.1f} {HEIGHT - floor:.1f}v{-height:.1f}h{_BAR}v{height:.1f}z"
        for place, (height, floor) in enumerate(zip(heights, floors, strict=True))
        if height
    )


def _height(count: int, top: int) -> float:
    return max(HEIGHT * count / top, _LEAST) if count else 0.0


def _line(counts: Sequence[int], top: int) -> str:
    return " ".join(
        f"{place + 0.5},{HEIGHT - HEIGHT * count / top:.1f}" for place, count in enumerate(counts)
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
