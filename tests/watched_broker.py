"""Brokers that write down who publishes when, and can be held with a batch in hand.

For processes that the test cannot reach into; option ``folder`` is where both leave word.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from folio_events.brokers.base import Broker, Report
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.kafka import KafkaBroker
from folio_events.message import Message


class Batch(NamedTuple):
    """One call of ``publish()``; the clock is the machine's."""

    pid: int
    began: float
    ended: float


class _Watched(Broker):
    def __init__(self, options: Mapping[str, Any]) -> None:
        given = dict(options)
        self._folder = Path(given.pop("folder"))
        #: Seconds that each batch takes besides.
        self._slowness = float(given.pop("slowness", 0))
        super().__init__(given)

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        began = time.monotonic()
        reports = super().publish(messages, timeout=timeout)  # type: ignore[safe-super]  # the other base's
        pause = threading.Event()
        pause.wait(self._slowness)
        if (self._folder / "hold").exists():
            (self._folder / "held").write_text(str(os.getpid()))
            while (self._folder / "hold").exists():
                pause.wait(0.02)
        with (self._folder / "batches").open("a") as batches:
            batches.write(f"{os.getpid()} {began} {time.monotonic()}\n")
        return reports


class WatchedDatabaseBroker(_Watched, DatabaseBroker):
    """The database broker, watched."""


class WatchedKafkaBroker(_Watched, KafkaBroker):
    """Apache Kafka, watched."""


def batches_in(folder: Path) -> list[Batch]:
    """What was published, in the order of the ends."""
    lines = (folder / "batches").read_text().splitlines()
    parts = [line.split() for line in lines]
    return [Batch(int(pid), float(began), float(ended)) for pid, began, ended in parts]
