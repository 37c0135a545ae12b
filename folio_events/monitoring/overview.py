"""The whole state of one database's delivery in one look, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import IntEnum

from django.db import DEFAULT_DB_ALIAS, OperationalError
from django.db import Error as DatabaseError
from django.utils import timezone

from folio_events import processes
from folio_events.brokers import get_broker
from folio_events.connection import impatient
from folio_events.exceptions import BrokerError
from folio_events.monitoring.blockers import RelayState, relay_state
from folio_events.monitoring.overdue import Overdue, overdue
from folio_events.monitoring.positions import (
    GroupPosition,
    StoppedPartition,
    first_unread,
    positions,
    stopped_partitions,
)
from folio_events.monitoring.status import Status, status

#: Most seconds to wait for a broker's first word, and for a lock of the database.
_PATIENCE = 3.0
#: Most seconds for one statement.
_STATEMENT_TIMEOUT = 15.0


class Level(IntEnum):
    """How bad it is; also the exit code for monitors."""

    OK = 0
    DEGRADED = 1
    FAILING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From where on something is wrong; None: never."""

    #: Seconds that the oldest unpublished message may wait.
    degraded_age: float | None = 60.0
    failing_age: float | None = 600.0
    #: Records of a group in a partition.
    degraded_lag: int | None = 10_000
    failing_lag: int | None = None
    #: Overdue events.
    degraded_overdue: int | None = 1
    failing_overdue: int | None = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One look; see the parts."""

    database: str
    status: Status
    relay: RelayState
    positions: list[GroupPosition]
    overdue: list[Overdue]
    stopped: list[StoppedPartition]
    #: Why the broker did not answer; empty where it did, or was not asked.
    broker_error: str
    #: Relays and consumers that vanished, and nobody took their place.
    vanished: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    level: Level
    text: str


def overview(*, ask_broker: bool = True, using: str = DEFAULT_DB_ALIAS) -> Overview:
    """Look at all parts of the delivery of one database.

    Args:
        ask_broker: Whether to ask the broker how far its partitions reach, which may take
            seconds; without it lags are unknown. One that is away is not waited for.
        using: Database alias.

    Raises:
        django.db.Error: The database does not answer, or somebody has locked what it was asked
            for; the text says what that was.
    """
    with quickly(using):
        with _look("offsets of groups"):
            places = positions(broker=None, using=using)
            stopped = stopped_partitions(using=using)
        with _look("outbox, deliveries and orphans"):
            now = status(using=using)
        with _look("relay"):
            relay = relay_state(using=using)
        with _look("processes"):
            gone = vanished(using=using)
    broker_error, unread = "", []
    if ask_broker:
        broker = get_broker()
        try:
            broker.ping(timeout=_PATIENCE)
            places = positions(broker=broker, using=using)
            unread = first_unread(places, broker=broker)
        except BrokerError as error:
            broker_error = str(error)
    with quickly(using), _look("overdue events"):
        late = overdue(unread=unread, using=using)
    return Overview(
        database=using,
        status=now,
        relay=relay,
        positions=places,
        overdue=late,
        stopped=stopped,
        broker_error=broker_error,
        vanished=gone,
    )


def quickly(using: str) -> AbstractContextManager[None]:
    """Have a database give up what waits for a lock, or takes too long; see ``impatient()``."""
    return impatient(lock=_PATIENCE, statement=_STATEMENT_TIMEOUT, using=using)


@contextmanager
def _look(what: str) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise OperationalError(f"{what}: {str(error).strip()}") from error


def vanished(*, using: str) -> list[str]:
    """Name the relays and consumers that vanished, and nobody took their place."""
    now = timezone.now()
    return [
        f"{process.kind} {process.name} on {process.host}, pid {process.pid}, silent for "
        f"{(now - process.heartbeat_at).total_seconds():.0f} s"
        for process in processes.unreplaced(using=using)
    ]


def judge(seen: Overview, thresholds: Thresholds | None = None) -> list[Finding]:
    """Say what is wrong, the worst first; empty: nothing."""
    found = _judge(seen, thresholds or Thresholds())
    return sorted(found, key=lambda finding: -finding.level)


def _judge(seen: Overview, limits: Thresholds) -> Iterator[Finding]:
    now = seen.status
    level = _level(now.oldest_age, limits.degraded_age, limits.failing_age)
    if level:
        yield Finding(
            level=level, text=f"the oldest unpublished message is {now.oldest_age:.0f} s old"
        )
    for process in seen.vanished:
        yield Finding(level=Level.FAILING, text=f"{process}: it vanished, and no other runs")
    if seen.broker_error:
        yield Finding(level=Level.DEGRADED, text=f"the broker does not answer: {seen.broker_error}")
    level = _level(len(seen.overdue), limits.degraded_overdue, limits.failing_overdue)
    if level:
        oldest = (timezone.now() - seen.overdue[0].since).total_seconds()
        yield Finding(
            level=level,
            text=f"{_some(len(seen.overdue), 'event is', 'events are')} overdue, "
            f"the oldest {oldest:.0f} s",
        )
    yield from _stopped(seen.stopped)
    lag = max((place.lag or 0 for place in seen.positions), default=0)
    if level := _level(lag, limits.degraded_lag, limits.failing_lag):
        yield Finding(level=level, text=f"a group is {_some(lag, 'record')} behind in a partition")
    if refused := now.withheld.get("refused"):
        yield Finding(level=Level.DEGRADED, text=f"the broker refused {_some(refused, 'message')}")
    dead = sum(count for (_, state), count in now.deliveries.items() if state == "dead")
    if dead:
        yield Finding(
            level=Level.DEGRADED, text=f"{_some(dead, 'delivery is', 'deliveries are')} dead"
        )
    if orphans := sum(now.orphans.values()):
        text = f"{_some(orphans, 'message has', 'messages have')} no owner"
        yield Finding(level=Level.DEGRADED, text=text)
    if now.open_breakers:
        names = ", ".join(sorted(now.open_breakers))
        yield Finding(level=Level.DEGRADED, text=f"breakers are open: {names}")


def _stopped(found: Iterable[StoppedPartition]) -> Iterator[Finding]:
    by_group: dict[str, list[StoppedPartition]] = {}
    for one in found:
        by_group.setdefault(one.group, []).append(one)
    for group, places in by_group.items():
        where = _some(len({(one.topic, one.partition) for one in places}), "partition")
        longest = (timezone.now() - places[0].since).total_seconds()
        who = ", ".join(sorted({one.receiver for one in places}))
        text = f"group {group} is stopped in {where}, for {longest:.0f} s at longest: {who}"
        yield Finding(level=Level.DEGRADED, text=text)


def _some(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _level(value: float, degraded: float | None, failing: float | None) -> Level:
    if failing is not None and value >= failing:
        return Level.FAILING
    return Level.DEGRADED if degraded is not None and value >= degraded else Level.OK
