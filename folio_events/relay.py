"""One drain: lock, read, publish, record, advance."""

from __future__ import annotations

import functools
import json
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, transaction
from django.utils import timezone

from folio_events import topics, withheld
from folio_events.brokers import get_broker
from folio_events.brokers.base import Acknowledgement, Broker, TopicSpec
from folio_events.conf import get_settings
from folio_events.cursor import OutboxCursor, OutboxRow
from folio_events.dialects import wire_headers
from folio_events.exceptions import (
    BrokerError,
    MessageTooLargeError,
    MissingTopicError,
)
from folio_events.message import Headers, Message
from folio_events.models import OutboxMessage, Publication

logger = logging.getLogger("folio_events.relay")

#: Advisory lock of the relay: one of each database at a time. The number spells "folio".
_LOCK = 0x666F6C696F


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """What one drain did."""

    published: int = 0
    #: Rows set aside: refused for good, or followers of such.
    withheld: int = 0
    #: Another relay holds the lock.
    standby: bool = False
    #: The batch was full: there may be more.
    more: bool = False
    #: Why rows were left for the next drain, if any were.
    unavailable: str = ""


@dataclass(slots=True)
class _Outcome:
    """What became of the rows of one drain, by outbox id."""

    acknowledged: dict[int, tuple[OutboxRow, str, Acknowledgement]] = field(default_factory=dict)
    refused: list[tuple[OutboxRow, str]] = field(default_factory=list)
    #: Not acknowledged, in ascending order of id.
    left: list[OutboxRow] = field(default_factory=list)
    unavailable: str = ""


@functools.cache
def _cursor(using: str, _thread: int) -> OutboxCursor:
    return OutboxCursor(using)


def drain(
    *, using: str = DEFAULT_DB_ALIAS, broker: Broker | None = None, limit: int | None = None
) -> Drain:
    """Publish the next rows of the outbox, in the commit order of each key.

    Safe when several run at once: one works, the others return at once.

    Args:
        using: Database alias.
        broker: Defaults to the setting BROKER.
        limit: Most rows; defaults to RELAY_BATCH_SIZE.

    Returns:
        What it did. Rows that could not be published stay for the next drain.
    """
    broker = broker or get_broker()
    limit = limit or get_settings().RELAY_BATCH_SIZE
    cursor = _cursor(using, threading.get_ident())
    # Finding nothing must not take SQLite's one write lock.
    if connections[using].vendor == "sqlite" and not _has_work(cursor):
        return Drain()
    done = False
    try:
        with _relay_lock(using, broker) as locked:
            result = _drain(cursor, using, broker, limit) if locked else Drain(standby=True)
        done = True
    except IntegrityError:
        # Rows ahead of the cursor were published before: it was set back by hand, or came
        # with a backup. They are published again.
        stale = Publication.objects.using(using).filter(outbox_message__gt=cursor.stored_position)
        stale.delete()
        return Drain(more=True)
    finally:
        if not done:
            cursor.forget()
    return result


@contextmanager
def _relay_lock(using: str, broker: Broker) -> Iterator[bool]:
    connection = connections[using]
    if connection.vendor == "postgresql":
        # Of the transaction, not of the session: it ends with the connection, and works
        # behind PgBouncer.
        with transaction.atomic(using=using), connection.cursor() as cursor:
            # Statistics of an empty outbox must not make the planner scan a full one, nor many
            # gaps have it compile what takes a few milliseconds.
            cursor.execute(
                "SELECT pg_try_advisory_xact_lock(%s), set_config('enable_seqscan', 'off', true),"
                " set_config('jit', 'off', true)",
                [_LOCK],
            )
            yield bool(cursor.fetchone()[0])
        return
    # Kafka is waited for without the write lock; a log in this database needs it.
    inside = transaction.atomic(using=using) if broker.lives_in(using) else nullcontext()
    with _sqlite_lock(str(connection.settings_dict["NAME"])) as locked:
        if not locked:
            yield False
            return
        with inside:
            yield True


_memory_lock = threading.Lock()


@contextmanager
def _sqlite_lock(name: str) -> Iterator[bool]:
    if ":memory:" in name or "mode=memory" in name:
        locked = _memory_lock.acquire(blocking=False)
        try:
            yield locked
        finally:
            if locked:
                _memory_lock.release()
        return
    # A second file, so that waiting for a broker does not stop the writers of the first.
    lock = sqlite3.connect(f"{name}-relay", timeout=0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        yield False
    else:
        yield True
    finally:
        lock.close()


def _has_work(cursor: OutboxCursor) -> bool:
    using = cursor.using
    cursor.load()
    return (
        bool(cursor.gaps.fresh)
        or OutboxMessage.objects.using(using).filter(id__gt=cursor.position).exists()
        or bool(withheld.publishable(1, using=using))
    )


def _drain(cursor: OutboxCursor, using: str, broker: Broker, limit: int) -> Drain:
    cursor.load()
    deadline = time.monotonic() + get_settings().RELAY_DEADLINE
    any_open = withheld.any_open(using=using)
    released = _drain_withheld(using, broker, limit, deadline) if any_open else 0
    rows = cursor.read(limit)
    followers, rows = _split(rows, using) if any_open else ([], rows)
    outcome = _publish(rows, broker, deadline)
    if outcome.left and not outcome.acknowledged and not outcome.refused and not followers:
        # Nothing happened: nothing is written, so a broker that is away costs nothing.
        cursor.forget()
        _log(outcome, [], using)
        return Drain(published=released, unavailable=outcome.unavailable)
    # After a refusal its followers stand in the rest of the batch.
    chains = {row.chain for row, _error in outcome.refused if row.chain is not None}
    followers += [row for row in outcome.left if row.chain in chains]
    left = [row for row in outcome.left if row.chain not in chains]
    with transaction.atomic(using=using, savepoint=False):
        aside = [*outcome.refused, *((row, "") for row in followers)]
        if aside:
            withheld.withhold(aside, using=using)
        _record(outcome, using)
        cursor.hold_back([row.id for row in left])
        cursor.save()
    _log(outcome, followers, using)
    return Drain(
        published=released + len(outcome.acknowledged),
        withheld=len(outcome.refused) + len(followers),
        more=max(len(rows) + len(followers), released) >= limit and not outcome.unavailable,
        unavailable=outcome.unavailable,
    )


def _split(rows: Sequence[OutboxRow], using: str) -> tuple[list[OutboxRow], list[OutboxRow]]:
    """Part the rows whose key has older ones set aside from the others."""
    keys = {row.key for row in rows if row.key is not None}
    blocked = withheld.open_chains(keys, using=using) if keys else set()
    return (
        [row for row in rows if row.chain in blocked],
        [row for row in rows if row.chain not in blocked],
    )


def _drain_withheld(using: str, broker: Broker, limit: int, deadline: float) -> int:
    """Publish what was released and, behind it, the followers of its key."""
    ids = withheld.publishable(limit, using=using)
    if not ids:
        return 0
    # They are released because something has changed, such as the limit of a topic.
    broker.forget_topics()
    rows = [
        OutboxRow._make((i, str(event_id), *rest))
        for i, event_id, *rest in OutboxMessage.objects.using(using)
        .filter(id__in=ids)
        .order_by("id")
        .values_list(*OutboxRow._fields)
    ]
    outcome = _publish(rows, broker, deadline)
    with transaction.atomic(using=using, savepoint=False):
        withheld.withhold(outcome.refused, using=using)
        withheld.mark_published(list(outcome.acknowledged), using=using)
        _record(outcome, using)
    _log(outcome, [], using)
    return len(outcome.acknowledged)


def _publish(rows: Sequence[OutboxRow], broker: Broker, deadline: float) -> _Outcome:
    """Publish rows in ascending order of id; a refused one stops the later ones of its key."""
    outcome = _Outcome()
    blocked: set[withheld.Chain | None] = set()
    try:
        missing = _missing_topics(rows, broker)
    except BrokerError as error:
        outcome.left, outcome.unavailable = list(rows), str(error)
        return outcome
    # What is known to be refused must not reach the producer: it would stop the others.
    sendable: list[tuple[OutboxRow, Message]] = []
    limit_of = functools.cache(broker.max_message_bytes)
    for row in rows:
        message = _message(row)
        refusal = _known_refusal(message, missing, limit_of(message.topic))
        if blocked and row.chain in blocked:
            outcome.left.append(row)
        elif refusal is not None:
            outcome.refused.append((row, _reason(refusal)))
            blocked.add(row.chain)
            blocked.discard(None)
        else:
            sendable.append((row, message))
    segments = deque([sendable])
    while segments:
        segment = segments.popleft()
        if blocked:
            segment = [pair for pair in segment if pair[0].chain not in blocked]
        if not segment:
            continue
        reports = broker.publish(
            [m for _, m in segment], timeout=max(deadline - time.monotonic(), 0.1)
        )
        rest: list[tuple[OutboxRow, Message]] = []
        guilty = None
        for (row, message), report in zip(segment, reports, strict=True):
            if isinstance(report, Acknowledgement):
                outcome.acknowledged[row.id] = (row, message.topic, report)
                continue
            if isinstance(report, MissingTopicError):
                broker.known_topics.discard(message.topic)
            if not report.retryable and guilty is None:
                guilty = len(rest), report
            rest.append((row, message))
            if report.retryable:
                outcome.unavailable = str(report)
        if guilty is not None and len(segment) == 1:
            outcome.refused.append((segment[0][0], _reason(guilty[1])))
            blocked.add(segment[0][0].chain)
            blocked.discard(None)
        elif guilty is not None:
            # A whole batch is refused for one message of it: try that one by itself.
            at = guilty[0]
            segments.extendleft([rest[at + 1 :], [rest[at]], rest[:at]])
        elif rest and len(rest) < len(segment) and time.monotonic() < deadline:
            segments.appendleft(rest)
        elif rest:
            segments.appendleft(rest)
            break
    else:
        outcome.unavailable = ""
    if len(outcome.acknowledged) < len(rows):
        known = {*outcome.acknowledged, *(row.id for row, _error in outcome.refused)}
        outcome.left = [row for row in rows if row.id not in known]
    return outcome


def _missing_topics(rows: Sequence[OutboxRow], broker: Broker) -> dict[str, BrokerError]:
    """Create the topics that do not exist; say why, where that cannot be.

    Raises:
        BrokerError: The broker does not answer, or cannot create a topic just now.
    """
    settings = get_settings()
    names = {topics.wire_topic(*pair) for pair in {(row.topic, row.tenant) for row in rows}}
    if broker.keeps_topics:
        names -= broker.known_topics
    missing = broker.missing_topics(names) if names else set()
    refusals: dict[str, BrokerError] = {}
    for name in sorted(missing):
        if not settings.CREATE_TOPICS:
            refusals[name] = MissingTopicError(
                f"Topic {name!r} does not exist. Create it with 'manage.py create_topics', then release the message."
            )
            continue
        spec = TopicSpec(name, settings.TOPIC_PARTITIONS, settings.TOPIC_REPLICATION)
        try:
            broker.create_topics([spec])
        except BrokerError as error:
            if error.retryable:
                raise
            refusals[name] = error
        else:
            logger.info("created topic %s", name)
    broker.known_topics |= names - refusals.keys()
    return refusals


def _known_refusal(
    message: Message, refusals: Mapping[str, BrokerError], limit: int | None
) -> BrokerError | None:
    if message.topic in refusals:
        return refusals[message.topic]
    if limit is not None and message.size > limit:
        return MessageTooLargeError(f"{message.size} bytes; topic {message.topic!r} takes {limit}.")
    return None


def _reason(error: BrokerError) -> str:
    return f"{type(error).__name__}: {error}"


def _message(row: OutboxRow) -> Message:
    return Message(
        topic=topics.wire_topic(row.topic, row.tenant),
        key=None if row.key is None else row.key.encode(),
        value=bytes(row.payload),
        headers=wire_headers(
            _parse_headers(bytes(row.repeating_headers)),
            _parse_headers(bytes(row.own_headers)) if row.own_headers else [],
            event_id=row.event_id,
            occurred_at=row.occurred_at,
            sequence=row.id,
        ),
    )


@functools.lru_cache(maxsize=1024)
def _parse_headers(stored: bytes) -> Headers:
    return [(name, value.encode()) for name, value in json.loads(stored)]


def _record(outcome: _Outcome, using: str) -> None:
    """Note where each acknowledged row stands, in one statement."""
    if not outcome.acknowledged:
        return
    now = timezone.now()
    rows = [
        (row.id, topic, place.partition, place.offset, now)
        for row, topic, place in outcome.acknowledged.values()
    ]
    connection = connections[using]
    names = ("outbox_message_id", "topic", "partition", "offset", "published_at")
    if connection.vendor != "postgresql":
        Publication.objects.using(using).bulk_create(
            [Publication(**dict(zip(names, row, strict=True))) for row in rows]
        )
        return
    table = Publication._meta.db_table
    columns = ", ".join(map(connection.ops.quote_name, names))
    statement = f"COPY {table} ({columns}) FROM STDIN"
    # Django translates the errors of its own calls only.
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        for row in rows:
            copy.write_row(row)


def _log(outcome: _Outcome, followers: Sequence[OutboxRow], using: str) -> None:
    for row, error in outcome.refused:
        logger.error(
            "withheld outbox=%s topic=%s key=%s event=%s tenant=%s: %s",
            row.id, row.topic, row.key, row.event_id, row.tenant, error,
        )  # fmt: skip
    if outcome.unavailable:
        logger.warning(
            "%s messages wait for the broker: %s", len(outcome.left), outcome.unavailable
        )
    logger.debug(
        "drained %s: %s published, %s refused, %s follow",
        using, len(outcome.acknowledged), len(outcome.refused), len(followers),
    )  # fmt: skip
