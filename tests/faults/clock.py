"""Clocks that jump: by as many seconds as a file says at the moment."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone


def tamper(file: str) -> None:
    """Have the clocks of this process go wrong; those that only measure durations do not."""
    if not file:
        return
    true_time, true_now, path = time.time, timezone.now, Path(file)

    def off_by() -> float:
        return float(path.read_text() or 0)

    def wrong_time() -> float:
        return true_time() + off_by()

    def wrong_now() -> datetime:
        return true_now() + timedelta(seconds=off_by())

    time.time, timezone.now = wrong_time, wrong_now
