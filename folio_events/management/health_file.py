"""A file that stays young while a daemon works, for probes of a process that has no port."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two touches.
_INTERVAL = 1.0


class HealthFile:
    """Touched by each part of a process; as old as the part that was last heard of longest ago.

    Args:
        path: None: no file.
        parts: Names of those that have to be heard of.
    """

    def __init__(self, path: Path | None, parts: Collection[str]) -> None:
        self._path = path
        self._heard: dict[str, float] = dict.fromkeys(parts, 0.0)
        self._lock = threading.Lock()
        self._touched = 0.0

    def alive(self, part: str) -> None:
        """Note that a part has done a round without an error."""
        if self._path is None:
            return
        now = time.time()
        with self._lock:
            self._heard[part] = now
            oldest = min(self._heard.values())
            if oldest and now - self._touched >= _INTERVAL:
                self._touched = now
                self._path.touch()
                os.utime(self._path, (oldest, oldest))


@contextmanager
def health_file(path: str | None, parts: Collection[str]) -> Iterator[HealthFile]:
    """Keep a health file for the time of a block; it is gone before and after.

    Args:
        path: None: no file.
        parts: Names of those that have to be heard of.
    """
    place = None if path is None else Path(path)
    if place is not None:
        place.unlink(missing_ok=True)
    try:
        yield HealthFile(place, parts)
    finally:
        if place is not None:
            place.unlink(missing_ok=True)
