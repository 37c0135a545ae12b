"""Writer of processes: the heartbeat of each relay and consumer."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.utils import timezone

from folio_events.conf import get_settings
from folio_events.connection import refresh_connection
from folio_events.message import TopicPartition
from folio_events.models import Process
from folio_events.receivers import registry

logger = logging.getLogger("folio_events.processes")

#: Heartbeats that a process may miss before it counts as vanished.
MISSED = 3
#: How long a vanished process is shown.
KEPT = timedelta(days=1)
#: Most topics of which a row names the partitions.
_MAX_TOPICS = 50


class Heartbeat:
    """Says now and then that a process is alive, and what it does.

    Used by one thread, between two pieces of its work. A database that is away is logged and
    never stops the process.

    Args:
        kind: What the process is.
        name: Consumer group, or the relay's database.
        using: Database alias of the row.
    """

    def __init__(self, kind: Process.Kind, name: str, *, using: str) -> None:
        self._id = uuid.uuid4()
        self._kind = kind
        self._name = name
        self._using = using
        self._started_at = timezone.now()
        self._due = 0.0
        self._failed = False

    @property
    def is_due(self) -> bool:
        """Whether ``beat`` would write; asked first where its arguments cost something."""
        return time.monotonic() >= self._due

    def beat(
        self,
        state: Process.State,
        detail: str = "",
        *,
        partitions: Iterable[TopicPartition] = (),
        records: int = 0,
        busy_since: datetime | None = None,
    ) -> None:
        """Write the row, at most every HEARTBEAT_INTERVAL seconds.

        Does nothing in a transaction: that is somebody else's work.

        Args:
            state: What the process does.
            detail: Why.
            partitions: Those that a consumer has.
            records: Of the batch in hand.
            busy_since: When that was begun.
        """
        if not self.is_due or connections[self._using].in_atomic_block:
            return
        interval = get_settings().HEARTBEAT_INTERVAL
        self._due = time.monotonic() + interval
        row = Process(
            id=self._id,
            kind=self._kind,
            name=self._name[:255],
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            state=state,
            detail=detail[:1000],
            partitions=_by_topic(partitions),
            records=records,
            busy_since=busy_since,
            interval=interval,
            started_at=self._started_at,
            heartbeat_at=timezone.now(),
        )
        self._write(
            lambda: Process.objects.using(self._using).bulk_create(
                [row],
                update_conflicts=True,
                unique_fields=["id"],
                update_fields=[
                    "state", "detail", "partitions", "records", "busy_since", "interval",
                    "heartbeat_at",
                ],
            )
        )  # fmt: skip

    def end(self) -> None:
        """Take the row away: the process ends in good order."""
        if self._due and not connections[self._using].in_atomic_block:
            self._due = 0.0
            self._write(Process.objects.using(self._using).filter(id=self._id).delete)

    def _write(self, statement: object) -> None:
        try:
            refresh_connection(self._using)
            statement()  # type: ignore[operator]
        except DatabaseError as error:
            if not self._failed:
                logger.warning(
                    "%s %s has no heartbeat: %s", self._kind, self._name, type(error).__name__
                )
            self._failed = True
            connections[self._using].close()
        else:
            self._failed = False


def _by_topic(places: Iterable[TopicPartition]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place in sorted(places):
        found[place.topic].append(place.partition)
    return dict(list(found.items())[:_MAX_TOPICS])


def is_vanished(process: Process, now: datetime) -> bool:
    """Whether a process has missed so many heartbeats that it must have ended."""
    return now - process.heartbeat_at > timedelta(seconds=MISSED * process.interval)


def alive(*, using: str) -> dict[tuple[str, str], int]:
    """Count the processes that have not vanished.

    Args:
        using: Database alias.

    Returns:
        By kind, "relay" (tasks of Celery too) or "consumer", and name; 0 for each relay and
        group of this project that has none.
    """
    relay, consumer = Process.Kind.RELAY.value, Process.Kind.CONSUMER.value
    found = {(relay, using): 0}
    for group in registry.groups():
        # A group has its heartbeat in the first of its receivers' databases.
        home = max(receiver.lane for receiver in registry.in_group(group)) or DEFAULT_DB_ALIAS
        if home == using:
            found[consumer, group] = 0
    now = timezone.now()
    for process in Process.objects.using(using).all():
        if not is_vanished(process, now):
            kind = consumer if process.kind == consumer else relay
            found[kind, process.name] = found.get((kind, process.name), 0) + 1
    return found


def unreplaced(*, using: str) -> list[Process]:
    """List the processes that vanished without another of their kind and name being alive.

    Args:
        using: Database alias.

    Returns:
        Of each kind and name the one that was heard of last; a Celery task is a relay.
    """
    now = timezone.now()
    last: dict[tuple[bool, str], Process] = {}
    for process in Process.objects.using(using).order_by("heartbeat_at"):
        last[process.kind == Process.Kind.CONSUMER, process.name] = process
    return [process for process in last.values() if is_vanished(process, now)]
