"""What the demo shows while it works, and how it waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_BAR = 30
#: Seconds between two looks at a condition.
_LOOK = 0.2
#: Seconds without any progress after which waiting is given up.
PATIENCE = 60.0


class DemoError(Exception):
    """The demo cannot go on, or what it found is wrong."""


class Progress:
    """One task with a known number of parts: a bar on a terminal, a few lines elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._is_terminal = sys.stdout.isatty()
        self._began = time.monotonic()
        self._shown = 0

    def show(self, done: int, total: int) -> None:
        tenths = 10 * done // total if total else 10
        if self._is_terminal:
            filled = _BAR * done // total if total else _BAR
            bar = "#" * filled + "." * (_BAR - filled)
            print(f"\r  {self._title:<46} [{bar}] {done}/{total} ", end="", flush=True)
        elif tenths // 3 > self._shown // 3 and done < total:
            print(f"  {self._title}: {done} of {total}", flush=True)
        self._shown = max(self._shown, tenths)

    def finish(self, result: str) -> None:
        seconds = time.monotonic() - self._began
        end = "\r\033[K" if self._is_terminal else ""
        print(f"{end}  {self._title}: {result} ({seconds:.1f} s)", flush=True)


def wait_for(
    title: str,
    look: Callable[[], tuple[int, int]],
    *,
    alive: Callable[[], None],
    patience: float = PATIENCE,
) -> int:
    """Wait until a count is complete, for as long as it moves.

    Args:
        title: Shown with the progress.
        look: Returns what is done and what there is to do.
        alive: Raises if waiting has become useless.
        patience: Seconds without any change before it is given up.

    Returns:
        The count.

    Raises:
        DemoError: Nothing has moved for too long.
    """
    progress = Progress(title)
    last, moved = (-1, -1), time.monotonic()
    while True:
        done, total = seen = look()
        progress.show(done, total)
        if done == total:
            progress.finish(f"{done}")
            return done
        alive()
        if seen != last:
            last, moved = seen, time.monotonic()
        elif time.monotonic() - moved > patience:
            raise DemoError(f"{title}: it stands at {done} of {total} for {patience:.0f} seconds.")
        time.sleep(_LOOK)
