"""Whether a process can do its work, and whether the delivery of a database fares well."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.utils import timezone

from folio_events import outbox, processes
from folio_events.conf import get_settings
from folio_events.models import Process
from folio_events.monitoring.overview import (
    Finding,
    Level,
    Thresholds,
    judge,
    overview,
    quickly,
)
from folio_events.retry import is_transient

#: Seconds that a consumer may work on one batch.
LONG_BATCH = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A verdict and what it rests on, the worst first."""

    findings: tuple[Finding, ...] = ()

    @property
    def level(self) -> Level:
        return max((finding.level for finding in self.findings), default=Level.OK)

    @property
    def state(self) -> str:
        """One of "ok", "degraded" and "failing"."""
        return self.level.name.lower()

    @property
    def reasons(self) -> list[str]:
        return [finding.text for finding in self.findings]


def readiness(*, using: str = DEFAULT_DB_ALIAS) -> Health:
    """Say whether this process could record an event now.

    The broker has no part in it: an event goes into the database.

    Args:
        using: Database alias.
    """
    return Health(findings=tuple(_not_ready(using)))


def _not_ready(using: str) -> Iterator[Finding]:
    hard = get_settings().OUTBOX_HARD_LIMIT
    try:
        connections[using].ensure_connection()
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        yield Finding(level=Level.FAILING, text=f"database {using} does not answer")
        return
    try:
        with quickly(using):
            waiting = outbox.backlog(using=using, limits=[] if hard is None else [hard])
    except DatabaseError as error:
        text = f"database {using} lacks tables of folio_events: run 'manage.py migrate'"
        if is_transient(error):
            text = f"somebody has locked tables of folio_events in database {using}"
        yield Finding(level=Level.FAILING, text=text)
        return
    if hard is not None and waiting >= hard:
        text = f"{waiting} outbox messages wait: writes with events are refused"
        yield Finding(level=Level.FAILING, text=text)


def health(
    *,
    ask_broker: bool = True,
    thresholds: Thresholds | None = None,
    groups: Collection[str] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Health:
    """Say how the delivery of one database fares, whichever process asks.

    Args:
        ask_broker: Whether to ask the broker too; without it lags are unknown.
        thresholds: From where on something is wrong.
        groups: Consumer groups that have to be alive; None: all with receivers.
        using: Database alias.
    """
    if not_ready := list(_not_ready(using)):
        return Health(findings=tuple(not_ready))
    try:
        seen = overview(ask_broker=ask_broker, using=using)
        # Of processes more is said below.
        found = judge(replace(seen, vanished=[]), thresholds)
        found += _of_processes(seen.status.oldest_age > 0, groups, using)
    except DatabaseError as error:
        text = f"database {using} does not answer: {type(error).__name__}"
        return Health(findings=(Finding(level=Level.FAILING, text=text),))
    return Health(findings=tuple(sorted(found, key=lambda finding: -finding.level)))


def _of_processes(
    is_waiting: bool, groups: Collection[str] | None, using: str
) -> Iterator[Finding]:
    for (kind, name), count in sorted(processes.alive(using=using).items()):
        if count:
            continue
        if kind == Process.Kind.RELAY:
            level = Level.FAILING if is_waiting else Level.DEGRADED
            yield Finding(level=level, text=f"no relay of database {name} is alive")
        elif groups is None or name in groups:
            yield Finding(level=Level.FAILING, text=f"no consumer of group {name} is alive")
    now = timezone.now()
    for process in Process.objects.using(using).order_by("kind", "name", "pid"):
        if processes.is_vanished(process, now):
            continue
        who = f"{process.kind} {process.name} on {process.host}, pid {process.pid}"
        if process.state == Process.State.STALLED:
            yield Finding(level=Level.DEGRADED, text=f"{who} waits: {process.detail}")
        busy = (now - process.busy_since).total_seconds() if process.busy_since else 0.0
        if busy >= LONG_BATCH:
            yield Finding(
                level=Level.DEGRADED, text=f"{who} has worked on one batch for {busy:.0f} s"
            )
