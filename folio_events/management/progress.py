"""How far a long command is: one line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO, Any

from django.core.management.base import CommandError

from folio_events.management.command import INTERRUPTED

#: Seconds between two lines; on a terminal the one line is redrawn more often.
_INTERVAL = 5.0
_REDRAW = 0.2


class Progress:
    """Tells done, total, rate and remaining time of some work; a context manager.

    Nothing is written before the first interval is over, so short work stays quiet. Ctrl-C ends
    the command with how far it came.

    Args:
        stream: Where it is written; usually ``stderr``, so that the result alone is on ``stdout``.
        total: How many units there are; None: unknown, so no remaining time is told.
        unit: Plural noun of what is counted.
        done: Units that an earlier run did; they do not count for the rate.
    """

    def __init__(
        self, stream: IO[str] | Any, total: int | None, unit: str, *, done: int = 0
    ) -> None:
        self._stream = stream
        self._total = total
        self._unit = unit
        self._done = self._before = done
        self._started = self._shown = time.monotonic()
        self._on_terminal = bool(getattr(stream, "isatty", lambda: False)())
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._width:
            self._show(time.monotonic())
            self._write("\n")
        if isinstance(error, KeyboardInterrupt):
            raise CommandError(
                f"Stopped at {self._place()}; run it again to go on.", returncode=INTERRUPTED
            ) from error

    def advance(self, count: int = 1) -> None:
        """Count some units as done."""
        self._done += count
        now = time.monotonic()
        if now - self._shown >= (_REDRAW if self._on_terminal else _INTERVAL):
            self._show(now)

    def line(self, now: float) -> str:
        """What is told at a moment of ``time.monotonic()``."""
        elapsed = max(now - self._started, 1e-9)
        rate = (self._done - self._before) / elapsed
        if self._total is None:
            return f"{self._place()}, {rate:,.0f}/s"
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        told = f"{self._place()} ({share:.0%}), {rate:,.0f}/s"
        left = max(self._total - self._done, 0)
        return f"{told}, {_duration(left / rate)} left" if rate and left else told

    def _place(self) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        return f"{self._done:,}{of} {self._unit}"

    def _show(self, now: float) -> None:
        self._shown = now
        line = self.line(now)
        if self._on_terminal:
            # Blanks hide the end of a longer line before it.
            self._write(f"\r{line:<{self._width}}")
            self._width = len(line)
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        # A command's own stream would end each text with a line break.
        plain = getattr(self._stream, "_out", self._stream)
        plain.write(text)
        plain.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
