"""Writer of the outbox: append, and the lock that gives shared keys a commit order."""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.core.signals import setting_changed
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import BigIntegerField, F, Sum
from django.dispatch import receiver
from django.utils import timezone

from folio_events import dialects, signals
from folio_events.conf import get_settings
from folio_events.dialects import Head
from folio_events.encoding import dump, json_text
from folio_events.event import Event
from folio_events.exceptions import EncodingError, OutboxFullError
from folio_events.message import MAX_KEY_BYTES
from folio_events.models import OutboxMessage, RelayCursor, RelayGap
from folio_events.tenants import CallContext, current_context, resolve_tenant
from folio_events.topics.declared import is_compacted
from folio_events.wakeup import wake_after_commit

logger = logging.getLogger("folio_events.outbox")

#: Seconds for which one look at the backlog counts.
_BACKLOG_LIFETIME = 1.0

_COLUMNS = (
    "event_id",
    "topic",
    "event_type",
    "tenant",
    "key",
    "payload",
    "repeating_headers",
    "own_headers",
    "occurred_at",
)
# Plain names, which no database wants quoted.
_INSERT = f"INSERT INTO {OutboxMessage._meta.db_table} ({', '.join(_COLUMNS)}) VALUES "  # noqa: S608 - fixed names
#: Keys of one call from which on their topics are locked as a whole.
_MOST_KEY_LOCKS = 100
# By the table as well: other schemas of the database may have the same keys.
_LOCK_THEM = (
    f"(hashtextextended(name, 0) # '{OutboxMessage._meta.db_table}'::regclass::oid::bigint)"
    " FROM unnest(%s::text[]) AS name"
)
_LOCK_KEYS, _LOCK_TOPICS = (
    f"SELECT {lock}{_LOCK_THEM} UNION ALL SELECT pg_advisory_xact_lock{_LOCK_THEM}"
    for lock in ("pg_advisory_xact_lock_shared", "pg_advisory_xact_lock")
)
#: Rows from which on COPY is the faster.
_LEAST_COPY = 50
_COPY = f"COPY {OutboxMessage._meta.db_table} ({', '.join(_COLUMNS)}) FROM STDIN"
_NULL = "\\N"
#: Before bytes, as COPY's text form has them.
_HEX = "\\\\x"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ONE_ROW = f"({', '.join(['%s'] * len(_COLUMNS))})"


#: Further headers of one message: names and values as text.
TextHeaders = Sequence[tuple[str, str]]


class OutboxRow(NamedTuple):
    """One row to append, in the order of the columns."""

    event_id: uuid.UUID
    topic: str
    event_type: str
    tenant: str
    key: str | None
    #: None: a tombstone.
    payload: bytes | None
    repeating_headers: bytes
    own_headers: bytes
    occurred_at: datetime


def new_event(
    topic: str, kind: str, key: str | None, payload: Mapping[str, object] | None
) -> Event:
    """Make an event of the current tenant, with a new id, recorded now.

    Without a payload it is a tombstone.

    Raises:
        MissingTenantError: Tenancy is on and nobody names a tenant.
    """
    return Event(
        # FOLIO's schemas take UUIDs of versions 1 to 5 only, so no time-ordered version 7.
        id=uuid.uuid4(),
        topic=topic,
        type=kind,
        key=key,
        tenant=resolve_tenant(),
        occurred_at=timezone.now(),
        payload={} if payload is None else dict(payload),
        is_tombstone=payload is None,
    )


def make_row(event: Event, dialect: str, headers: TextHeaders = ()) -> OutboxRow:
    """Encode an event as the row that holds it, with further headers.

    Raises:
        EncodingError: The payload has a value without JSON form, or the key cannot be stored.
    """
    if event.is_tombstone and event.key is not None:
        return make_tombstone(
            event.topic, event.key, event.tenant, event.occurred_at, event.id, headers
        )
    head = Head(str(event.id), event.type, event.tenant, event.occurred_at)
    members = {name: json_text(value) for name, value in event.payload.items()}
    return encode_row(event.id, event.topic, event.key, head, members, dialect, headers)


def encode_row(
    event_id: uuid.UUID,
    topic: str,
    key: str | None,
    head: Head,
    members: Mapping[str, str],
    dialect: str,
    headers: TextHeaders = (),
) -> OutboxRow:
    """Make the row of an event whose payload is JSON text by member.

    Raises:
        EncodingError: The key or a text of the payload cannot be stored, or the topic is
            compacted and there is no key.
    """
    if key is not None:
        _check_key(key)
    elif is_compacted(topic):
        # Kafka would refuse it when nobody is there any more to hear of it.
        raise EncodingError(f"topic {topic!r} is compacted, which takes no event without a key")
    return OutboxRow(
        event_id,
        topic,
        head.kind,
        head.tenant or "",
        key,
        dialects.encode(head, members, dialect),
        *_stored_headers(topic, head.kind, head.tenant, headers),
        head.occurred_at,
    )


def _stored_headers(
    topic: str, kind: str, tenant: str | None, headers: TextHeaders
) -> tuple[bytes, bytes]:
    context = current_context()
    has_own = context.headers or context.cause_id or headers
    return (
        _repeating_headers(topic, kind, tenant, context.headers.get("x-okapi-url")),
        _own_headers(context, headers) if has_own else b"",
    )


def make_tombstone(
    topic: str,
    key: str,
    tenant: str | None,
    moment: datetime,
    event_id: uuid.UUID | None = None,
    headers: TextHeaders = (),
) -> OutboxRow:
    """Make the row of a tombstone: a message without body, by which a compacted topic forgets a key.

    Raises:
        EncodingError: The key cannot be stored.
    """
    _check_key(key)
    return OutboxRow(
        event_id or uuid.uuid4(),
        topic,
        dialects.TOMBSTONE,
        tenant or "",
        key,
        None,
        *_stored_headers(topic, dialects.TOMBSTONE, tenant, headers),
        moment,
    )


def _check_key(key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0 or "\0" in key:
        raise EncodingError("the key has a NUL or a lone surrogate in it")
    if size > MAX_KEY_BYTES:
        raise EncodingError(f"the key is longer than {MAX_KEY_BYTES} bytes")


@functools.lru_cache(maxsize=1024)
def _repeating_headers(topic: str, kind: str, tenant: str | None, url: str | None) -> bytes:
    headers = dialects.repeating_headers(topic, kind, tenant)
    if url is not None:
        headers.append(("x-okapi-url", url))
    return dump(headers)


@receiver(setting_changed, dispatch_uid="folio_events.outbox")
def _forget_headers(*, setting: str, **_kwargs: object) -> None:
    if setting == "FOLIO_EVENTS":
        _repeating_headers.cache_clear()


def _own_headers(context: CallContext, headers: TextHeaders) -> bytes:
    own = [(name, value) for name, value in context.headers.items() if name != "x-okapi-url"]
    if context.cause_id is not None:
        own.append(("ce_causationid", str(context.cause_id)))
    own += headers
    return dump(own) if own else b""


def lock_keys(keys: Collection[tuple[str, str | None, str]], *, using: str) -> None:
    """Let one transaction at a time append for some keys, until it ends.

    Without it, two transactions that share a key but no row could commit in another
    order than they drew their ids. SQLite has one writer at a time and needs no lock.

    Args:
        keys: Topic, tenant and key of each.
        using: Database alias.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    # In one order everywhere; and the server has room for some thousand locks, not for each
    # key of a bulk write.
    topics = sorted({f"{topic}\n{tenant or ''}" for topic, tenant, _key in keys})
    names = sorted({f"{topic}\n{tenant or ''}\n{key}" for topic, tenant, key in keys})
    whole = len(names) > _MOST_KEY_LOCKS
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_TOPICS if whole else _LOCK_KEYS, [topics, [] if whole else names])


def append(rows: Sequence[OutboxRow], *, using: str) -> None:
    """Insert rows in the transaction of the caller, in as few statements as can be.

    The ids are drawn by the insert itself, after the row that the event is about was
    written: on that rests the order of events of one key.
    """
    _ensure_room(len(rows), using)
    connection = connections[using]
    if len(rows) >= _LEAST_COPY and connection.vendor == "postgresql":
        _copy(rows, connection)
    else:
        chunk = (connection.features.max_query_params or 5000) // len(_COLUMNS)
        prepare = _as_is if connection.features.has_native_uuid_field else _as_text
        with _cursor(connection) as cursor:
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk]
                values = [value for row in part for value in prepare(row, connection)]
                cursor.execute(_INSERT + ", ".join([_ONE_ROW] * len(part)), values)
    wake_after_commit(connection)
    signals.events_recorded.tell(using=using, rows=rows)


def skip_ids(last: int, *, using: str) -> None:
    """Have the ids that are drawn from now on be higher than one; never lower than before."""
    connection = connections[using]
    table = OutboxMessage._meta.db_table
    with transaction.atomic(using=using), connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            statement = "UPDATE sqlite_sequence SET seq = max(seq, %s) WHERE name = %s"
            cursor.execute(statement, [last, table])
            if not cursor.rowcount:
                cursor.execute("INSERT INTO sqlite_sequence VALUES (%s, %s)", [table, last])
            return
        # An insert takes its lock before it draws an id: nobody draws one in between.
        cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute("SELECT pg_get_serial_sequence(%s, 'id')", [table])
        (sequence,) = cursor.fetchone()
        cursor.execute(
            f"SELECT setval(%s, %s) FROM {sequence} WHERE last_value < %s",  # noqa: S608
            [sequence, last, last],
        )


def _as_is(row: OutboxRow, _connection: BaseDatabaseWrapper) -> OutboxRow:
    return row


def _as_text(row: OutboxRow, connection: BaseDatabaseWrapper) -> tuple[Any, ...]:
    # As Django stores them.
    moment: Any = row[-1]
    if moment.tzinfo is connection.timezone:
        moment = str(moment.replace(tzinfo=None))
    else:
        moment = connection.ops.adapt_datetimefield_value(moment)
    return (row[0].hex, *row[1:-1], moment)


def _copy(rows: Sequence[OutboxRow], connection: BaseDatabaseWrapper) -> None:
    """Append many rows in half the time that an INSERT takes."""
    lines = [
        f"{event_id.hex}\t{topic}\t{_escaped(kind)}\t{tenant}\t"
        f"{_NULL if key is None else _escaped(key)}\t"
        f"{_NULL if payload is None else _HEX + payload.hex()}\t"
        f"{_HEX}{repeating.hex()}\t{_HEX}{own.hex()}\t{moment}\n"
        for event_id, topic, kind, tenant, key, payload, repeating, own, moment in rows
    ]
    # Django translates the errors of its own calls only.
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(_COPY) as copy,
    ):
        copy.write("".join(lines))


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


def _cursor(connection: BaseDatabaseWrapper) -> CursorWrapper:
    if connection.vendor != "postgresql":
        return connection.cursor()
    # Django's own escape each value into the statement; to send the bytes of a payload beside
    # it takes half the time.
    from django.db.backends.postgresql.base import ServerBindingCursor

    connection.ensure_connection()
    plain: Any = ServerBindingCursor(connection.connection)  # type: ignore[call-arg]  # psycopg's
    wrapped: CursorWrapper = connection._prepare_cursor(plain)  # type: ignore[attr-defined]  # noqa: SLF001
    return wrapped


@dataclass(slots=True)
class _Backlog:
    """How many rows waited when this process last looked, and how many it has added since."""

    waiting: int = 0
    added: int = 0
    looked_at: float = 0.0


_backlogs: dict[str, _Backlog] = {}


def _ensure_room(count: int, using: str) -> None:
    settings = get_settings()
    soft, hard = settings.OUTBOX_SOFT_LIMIT, settings.OUTBOX_HARD_LIMIT
    limits = [limit for limit in (soft, hard) if limit is not None]
    if not limits:
        return
    seen = _backlogs.setdefault(using, _Backlog())
    is_full = hard is not None and seen.waiting + seen.added + count > hard
    # What was added may have been rolled back or published: nothing is refused by it alone.
    if time.monotonic() - seen.looked_at >= _BACKLOG_LIFETIME or (is_full and seen.added):
        seen.waiting, seen.added = backlog(using=using, limits=limits), 0
        seen.looked_at = time.monotonic()
        if soft is not None and seen.waiting >= soft:
            logger.warning("%s outbox messages of database %s wait", seen.waiting, using)
    if hard is not None and seen.waiting + count > hard:
        raise OutboxFullError(
            f"{seen.waiting} outbox messages wait to be published, and {count} more would come; "
            f"OUTBOX_HARD_LIMIT is {hard}. "
            "See that a relay runs and that the broker answers: 'manage.py relay_events --once'."
        )
    seen.added += count


_IN_GAPS = f"""
SELECT count(*) FROM (
  SELECT 1 FROM {RelayGap._meta.db_table} g
  JOIN {OutboxMessage._meta.db_table} o ON o.id BETWEEN g.first_id AND g.last_id LIMIT %s) AS found
"""  # noqa: S608 - fixed names


def backlog(*, using: str, limits: Sequence[int] = ()) -> int:
    """How many rows wait to be published, those that are withheld aside.

    By the distance of ids, unless that comes to the lowest limit: ids that were rolled back
    are no rows.

    Args:
        using: Database alias.
        limits: Rows are counted from the lowest on, and no further than the highest.
    """
    rows = OutboxMessage.objects.using(using)
    ids = rows.values_list("id", flat=True)
    last = ids.order_by("-id").first()
    if last is None:
        return 0
    position = RelayCursor.objects.using(using).values_list("position", flat=True).first()
    if position is None:
        position = (ids.order_by("id").first() or last) - 1
    gaps = RelayGap.objects.using(using).aggregate(
        size=Sum(F("last_id") - F("first_id") + 1, output_field=BigIntegerField())
    )
    about = max(last - position, 0) + (gaps["size"] or 0)
    if not limits or about < min(limits):
        return about
    most = max(limits)
    ahead = rows.filter(id__gt=position)[:most].count()
    with connections[using].cursor() as cursor:
        cursor.execute(_IN_GAPS, [most])
        return min(ahead + int(cursor.fetchone()[0]), most)
