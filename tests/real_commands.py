"""Management commands as processes of their own, on the database of the test."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from django.conf import settings
from django.db import connection

from tests.services.process import Process

ROOT = Path(__file__).resolve().parent.parent


def environment(
    *, apps: Sequence[str] = (), folio_events: Mapping[str, object] | None = None, **more: str
) -> dict[str, str]:
    """What leads a process to the test's database and settings.

    Args:
        apps: More installed apps, for their receivers.
        folio_events: Keys of FOLIO_EVENTS that differ from the test's.
        more: More variables.
    """
    database = connection.settings_dict
    merged = {**settings.FOLIO_EVENTS, **(folio_events or {})}
    found = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "TESTS_APPS": ",".join(apps),
        "TESTS_FOLIO_EVENTS": json.dumps(merged),
        **more,
    }
    if connection.vendor == "postgresql":
        found["DATABASE_URL"] = (
            f"postgres://{database['USER']}:{database['PASSWORD']}@{database['HOST']}"
            f":{database['PORT']}/{database['NAME']}"
        )
    else:
        found["TESTS_SQLITE_FILE"] = str(database["NAME"])
    return found


class RealCommand:
    """A management command, or another program, in a process; its output is kept in a file."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str],
        program: Sequence[str] = (sys.executable, "-W", "error", "-m", "django"),
    ) -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        self.process = Process([*program, *arguments], cwd=ROOT, env=env, log=self.log)
        self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end; returns its status."""
        return self.process.wait(timeout)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Return when a condition holds; fail when it does not in time, or the process ends."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert self.process.running, f"it ended:\n{self.output}"
            assert time.monotonic() < deadline, f"it did not happen in time:\n{self.output}"
            pause.wait(0.02)
