"""A long command tells how far it is, fit for a terminal and for a log."""

from __future__ import annotations

import io

import pytest
from django.core.management.base import OutputWrapper

from folio_events.management import progress
from folio_events.management.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands for ``time`` in the module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_every_few_seconds(clock: Clock) -> None:
    """With done, total, share, rate and remaining time, and none for what lies between."""
    stream = io.StringIO()
    with Progress(stream, 4000, "rows") as bar:
        for _ in range(10):
            clock.now += 1
            bar.advance(100)
    assert stream.getvalue().splitlines() == [
        "500 of 4,000 rows (12%), 100/s, 35 s left",
        "1,000 of 4,000 rows (25%), 100/s, 30 s left",
    ]


def test_a_terminal_has_one_line_that_is_redrawn(clock: Clock) -> None:
    """And a line break at the end, whatever stream of a command wraps it."""
    terminal = Terminal()
    with Progress(OutputWrapper(terminal), 10_000, "rows") as bar:
        clock.now += 1
        bar.advance(10)
        clock.now += 99
        bar.advance(9990)
    first, second = (
        "10 of 10,000 rows (0%), 10/s, 16 min 39 s left",
        "10,000 of 10,000 rows (100%), 100/s",
    )
    assert terminal.getvalue() == f"\r{first}\r{second:<{len(first)}}\r{second}\n"


def test_short_work_is_quiet(clock: Clock) -> None:
    """Nothing is written before the first interval is over."""
    terminal = Terminal()
    with Progress(terminal, 10, "rows") as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""


def test_an_unknown_total_tells_no_remaining_time(clock: Clock) -> None:
    """Only how many are done, and how fast."""
    stream = io.StringIO()
    with Progress(stream, None, "events") as bar:
        clock.now += 10
        bar.advance(1234)
    assert stream.getvalue() == "1,234 events, 123/s\n"


def test_what_an_earlier_run_did_does_not_count_for_the_rate(clock: Clock) -> None:
    """A resumed job goes on from where it stood, at the speed that it has now."""
    stream = io.StringIO()
    with Progress(stream, 100_000, "rows", done=90_000) as bar:
        clock.now += 5
        bar.advance(50)
    assert stream.getvalue() == "90,050 of 100,000 rows (90%), 10/s, 16 min 35 s left\n"


@pytest.mark.parametrize(
    ("seconds", "told"), [(5, "5 s"), (65, "1 min 5 s"), (7300, "2 h 1 min"), (0.2, "0 s")]
)
def test_a_remaining_time_is_told_in_two_units_at_most(seconds: float, told: str) -> None:
    """Seconds matter only below an hour."""
    assert progress._duration(seconds) == told
