"""One drain: lock, read, publish, record, advance."""

from __future__ import annotations

import functools
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, transaction
from django.utils import timezone

from folio_events import counts, signals, withheld
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.cursor import OutboxCursor, OutboxRow
from folio_events.exceptions import InvalidStateError
from folio_events.logs import MessageRef, log_message
from folio_events.models import OutboxMessage, Publication
from folio_events.sending import Outcome, PublishedBatch, headers_of, send

logger = logging.getLogger("folio_events.relay")

_COPY = (
    f"COPY {Publication._meta.db_table}"
    ' (outbox_message_id, topic, partition, "offset", published_at) FROM STDIN'
)
#: Advisory lock of the relay, in SQL: one of each outbox at a time, also where each schema of a
#: database has its own. The number spells "folio".
LOCK = f"{0x666F6C696F} # '{OutboxMessage._meta.db_table}'::regclass::oid::bigint"


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
                f"SELECT pg_try_advisory_xact_lock({LOCK}), set_config('enable_seqscan', 'off', true),"
                " set_config('jit', 'off', true)"
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


@contextmanager
def paused(using: str) -> Iterator[None]:
    """Open a transaction in which no relay is at work, after waiting for the one that is.

    Raises:
        InvalidStateError: SQLite: it did not end within twice RELAY_DEADLINE.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        with transaction.atomic(using=using):
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            yield
        return
    patience = 2 * get_settings().RELAY_DEADLINE
    with _sqlite_lock(str(connection.settings_dict["NAME"]), patience) as locked:
        if not locked:
            raise InvalidStateError(f"A relay is at work for more than {patience:g} s; try again.")
        with transaction.atomic(using=using):
            yield


_memory_lock = threading.Lock()


@contextmanager
def _sqlite_lock(name: str, patience: float = 0.0) -> Iterator[bool]:
    if ":memory:" in name or "mode=memory" in name:
        locked = _memory_lock.acquire(timeout=patience)
        try:
            yield locked
        finally:
            if locked:
                _memory_lock.release()
        return
    # A second file, so that waiting for a broker does not stop the writers of the first.
    lock = sqlite3.connect(f"{name}-relay", timeout=patience, isolation_level=None)
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
    outcome = send(rows, broker, deadline=deadline)
    if outcome.left and not outcome.acknowledged and not outcome.refused and not followers:
        # Nothing happened: nothing is written, so a broker that is away costs nothing.
        cursor.forget()
        _log(outcome, [], using)
        return Drain(published=released, unavailable=outcome.unavailable)
    # After a refusal its followers stand in the rest of the batch.
    followers += [row for row in outcome.left if row.chain in outcome.blocked]
    left = [row for row in outcome.left if row.chain not in outcome.blocked]
    with transaction.atomic(using=using, savepoint=False):
        aside = [*outcome.refused, *((row, "") for row in followers)]
        if aside:
            withheld.withhold(aside, using=using)
        _record(outcome, using)
        cursor.hold_back([row.id for row in left])
        cursor.save()
    _tell(rows, outcome, followers, using)
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
        OutboxRow._make(
            (i, str(event_id), topic, tenant, key, body and bytes(body), *map(bytes, headers), at)
        )
        for i, event_id, topic, tenant, key, body, *headers, at in OutboxMessage.objects.using(
            using
        )
        .filter(id__in=ids)
        .order_by("id")
        .values_list(*OutboxRow._fields)
    ]
    outcome = send(rows, broker, deadline=deadline)
    with transaction.atomic(using=using, savepoint=False):
        withheld.withhold(outcome.refused, using=using)
        withheld.mark_published(list(outcome.acknowledged), using=using)
        _record(outcome, using)
    _tell(rows, outcome, [], using)
    return len(outcome.acknowledged)


def _record(outcome: Outcome, using: str) -> None:
    """Note where each acknowledged row stands, in one statement."""
    if not outcome.acknowledged:
        return
    now = timezone.now()
    connection = connections[using]
    if connection.vendor != "postgresql":
        Publication.objects.using(using).bulk_create(
            Publication(
                outbox_message_id=number,
                topic=topic,
                partition=place.partition,
                offset=place.offset,
                published_at=now,
            )
            for number, (topic, place) in outcome.acknowledged.items()
        )
        return
    # No name of a topic has a character that COPY's text form wants escaped.
    end = f"{now}\n"  # not in the loop: dates are slow
    lines = [
        f"{number}\t{topic}\t{partition}\t{offset}\t{end}"
        for number, (topic, (partition, offset)) in outcome.acknowledged.items()
    ]
    # Django translates the errors of its own calls only.
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(_COPY) as copy,
    ):
        copy.write("".join(lines))


def _tell(
    rows: Sequence[OutboxRow], outcome: Outcome, followers: Sequence[OutboxRow], using: str
) -> None:
    _count(rows, outcome, using)
    _log(outcome, followers, using)
    if outcome.acknowledged:
        signals.events_published.tell(using=using, batch=PublishedBatch(rows, outcome))
    for row, reason in [*outcome.refused, *((row, "") for row in followers)]:
        signals.message_withheld.tell(
            using=using, outbox_id=row.id, message=_ref(row), reason=reason
        )


def _count(rows: Sequence[OutboxRow], outcome: Outcome, using: str) -> None:
    done = outcome.acknowledged
    if len(done) < len(rows):
        rows = [row for row in rows if row.id in done]
    published = Counter(map(attrgetter("topic"), rows))
    for topic, count in published.items():
        counts.add(counts.Outcome.PUBLISHED, topic, count, using=using)


def _ref(row: OutboxRow) -> MessageRef:
    headers = dict(headers_of(row))
    return MessageRef(
        topic=row.topic,
        key=row.key,
        event_id=row.event_id,
        tenant=row.tenant,
        request_id=(headers.get("x-okapi-request-id") or b"").decode(),
    )


def _log(outcome: Outcome, followers: Sequence[OutboxRow], using: str) -> None:
    for row, error in outcome.refused:
        log_message(logger, logging.ERROR, "withheld", _ref(row), error, outbox_id=row.id)
    if outcome.unavailable:
        logger.warning(
            "%s messages wait for the broker: %s", len(outcome.left), outcome.unavailable
        )
    logger.debug(
        "drained %s: %s published, %s refused, %s follow",
        using, len(outcome.acknowledged), len(outcome.refused), len(followers),
    )  # fmt: skip
