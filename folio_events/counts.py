"""Writer of event counts: what was published, handled and failed, minute by minute."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db import Error as DatabaseError
from django.db.models import Sum
from django.utils import timezone

from folio_events.connection import refresh_connection
from folio_events.models import EventCount

logger = logging.getLogger("folio_events.counts")

Outcome = EventCount.Outcome
MINUTE, TEN_MINUTES = 60, 600
#: How long counts are kept.
KEPT = timedelta(days=2)
#: Least seconds between two writes of one process.
INTERVAL = 5.0
#: Most counts that wait while the database is away; the rest is forgotten.
_MOST_PENDING = 10_000
#: Rows of each count among which the processes are spread, so that they do not wait for
#: each other.
_SHARDS = 16
#: Rows of one statement.
_ROWS = 100

_TABLE = EventCount._meta.db_table
_ADD = f"""
INSERT INTO {_TABLE} (span, started_at, outcome, name, shard, count) VALUES %s
ON CONFLICT (span, started_at, outcome, name, shard)
DO UPDATE SET count = {_TABLE}.count + excluded.count
"""  # noqa: S608 - fixed name


class _Key(NamedTuple):
    minute: int
    outcome: str
    name: str


class _Pending:
    """What was counted of one database and not written."""

    def __init__(self) -> None:
        self.counts: Counter[_Key] = Counter()
        #: When it is to be written, on the monotonic clock.
        self.due = 0.0


_pending: defaultdict[str, _Pending] = defaultdict(_Pending)
_lock = threading.Lock()


def add(outcome: EventCount.Outcome, name: str, count: int = 1, *, using: str) -> None:
    """Count events, in memory; ``flush`` writes it.

    Args:
        outcome: What became of them.
        name: Logical topic of what was published, else the receiver.
        count: How many.
        using: Database alias.
    """
    key = _Key(int(time.time()) // 60, outcome.value, name[:255])
    with _lock:
        pending = _pending[using]
        if not pending.counts:
            pending.due = time.monotonic() + INTERVAL
        if key in pending.counts or len(pending.counts) < _MOST_PENDING:
            pending.counts[key] += count


def flush(*, using: str, at_once: bool = False) -> None:
    """Write what was counted, at most every few seconds, in a transaction of its own.

    Does nothing in a transaction: that is somebody else's work. What cannot be written is kept
    for the next time.

    Args:
        using: Database alias.
        at_once: Whether to write before the seconds are over, such as at the end.
    """
    pending = _pending[using]
    if not pending.counts or connections[using].in_atomic_block:
        return
    if not at_once and time.monotonic() < pending.due:
        return
    with _lock:
        taken, pending.counts = pending.counts, Counter()
    try:
        refresh_connection(using)
        with transaction.atomic(using=using):
            _write(taken, using)
    except DatabaseError as error:
        logger.warning("counts wait for database %s: %s", using, type(error).__name__)
        connections[using].close()
        with _lock:
            pending.counts.update(taken)
            pending.due = time.monotonic() + INTERVAL


def _write(taken: Counter[_Key], using: str) -> None:
    sums: Counter[tuple[int, int, str, str]] = Counter()
    for key, count in taken.items():
        for span in (MINUTE, TEN_MINUTES):
            sums[span, key.minute * 60 // span * span, key.outcome, key.name] += count
    shard = zlib.crc32(f"{socket.gethostname()}/{os.getpid()}".encode()) % _SHARDS
    # In one order, or two processes of a shard could wait for each other.
    rows = sorted(sums.items())
    adapt = connections[using].ops.adapt_datetimefield_value
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        values: list[int | str] = []
        for (span, stamp, outcome, name), count in part:
            values += [span, str(adapt(_moment(stamp))), outcome, name, shard, count]
        listed = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * len(part))
        with connections[using].cursor() as cursor:
            cursor.execute(_ADD.replace("%s", listed, 1), values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Counts over a stretch of time, in spans of equal length; the last is not over.

    Attributes:
        starts: When each span began.
        counts: By outcome and name, one number for each span.
    """

    starts: tuple[datetime, ...]
    counts: dict[tuple[str, str], list[int]]

    def total(self, outcome: str) -> list[int]:
        """The numbers of one outcome, of all names together."""
        rows = [numbers for (one, _), numbers in self.counts.items() if one == outcome]
        return [sum(column) for column in zip(*rows, strict=True)] or [0] * len(self.starts)


def last_hour(*, using: str = DEFAULT_DB_ALIAS) -> Series:
    """The last 60 minutes, by outcome and name.

    Args:
        using: Database alias.
    """
    return _series(MINUTE, 60, using, by_name=True)


def last_day(*, using: str = DEFAULT_DB_ALIAS) -> Series:
    """The last 24 hours in spans of ten minutes, by outcome; all names are "".

    Args:
        using: Database alias.
    """
    return _series(TEN_MINUTES, 144, using, by_name=False)


def _series(span: int, length: int, using: str, *, by_name: bool) -> Series:
    current = int(timezone.now().timestamp()) // span
    first = current - length + 1
    starts = tuple(_moment((first + n) * span) for n in range(length))
    rows = EventCount.objects.using(using).filter(span=span, started_at__gte=starts[0])
    fields = ["started_at", "outcome", *(["name"] if by_name else [])]
    counts: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * length)
    for started_at, outcome, *name, count in (
        rows.order_by().values_list(*fields).annotate(total=Sum("count"))
    ):
        place = int(started_at.timestamp()) // span - first
        if place < length:
            counts[outcome, name[0] if name else ""][place] += count
    return Series(starts=starts, counts=dict(counts))


def _moment(stamp: int) -> datetime:
    return datetime.fromtimestamp(stamp, UTC if settings.USE_TZ else None)
