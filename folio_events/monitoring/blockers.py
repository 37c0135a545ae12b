"""Who holds the relay back: the database sessions that may still bring earlier messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from folio_events.models import OutboxMessage, RelayCursor, RelayGap
from folio_events.relay import LOCK

#: Words of a statement up to the first value in it.
_OPENING = re.compile(r"\s*((?:[A-Za-z_][\w.\"]*\s*){1,6})")
_SESSION = """
       coalesce(a.application_name, p.gid, ''), coalesce(a.usename, p.owner, '')::text,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float,
       CASE WHEN p.gid IS NULL THEN coalesce(a.state, '') ELSE 'prepared' END,
       concat_ws(': ', a.wait_event_type, a.wait_event), coalesce(a.query, ''),
       CASE WHEN l.pid IS NULL THEN '{}'::int[] ELSE pg_blocking_pids(l.pid) END
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction IN (
  SELECT x.transactionid FROM pg_locks x
  WHERE x.virtualtransaction = l.virtualtransaction AND x.pid IS NULL)
WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# As the cursor looks for them: whoever inserts holds this lock to the end of the transaction.
_WRITERS = f"""
SELECT DISTINCT ON (l.virtualtransaction) l.pid, {_SESSION}
  AND l.locktype = 'relation' AND l.relation = %s::regclass AND l.mode = 'RowExclusiveLock'
"""
_RELAY = f"""
SELECT l.pid, {_SESSION}
  AND l.locktype = 'advisory' AND l.objsubid = 1
  AND (l.classid::bigint << 32) + l.objid::bigint = {LOCK}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session of the database, or a prepared transaction.

    Attributes:
        pid: Of the server's process; None: a prepared transaction.
        name: Its application_name, or the prepared transaction's id.
        user: Who is connected.
        age: Seconds since its transaction began.
        state: As pg_stat_activity has it, or "prepared".
        waits_for: Type and name of what it waits for; empty: nothing.
        statement: The opening words of its last statement, without any value.
        blocked_by: Processes whose locks it waits for.
    """

    pid: int | None
    name: str
    user: str
    age: float
    state: str
    waits_for: str
    statement: str
    blocked_by: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayState:
    """How far the relay is, and whom it waits for.

    Attributes:
        position: Highest outbox id that was read; None: no relay has run yet.
        last_id: Highest outbox id there is; 0: none.
        gaps: How many ranges of ids below the position are still asked for.
        oldest_gap: First and last id of the lowest of them.
        relay: The session that publishes at this moment; None: none does.
        writers: Sessions that have written events and not committed, oldest first. Those that
            are older than the gaps are what the gaps wait for. SQLite tells none.
    """

    position: int | None
    last_id: int
    gaps: int
    oldest_gap: tuple[int, int] | None
    relay: Session | None
    writers: tuple[Session, ...]

    @property
    def holder(self) -> Session | None:
        """Who holds the oldest unpublished message back, as far as can be told."""
        return self.writers[0] if self.gaps and self.writers else None


def relay_state(*, using: str = DEFAULT_DB_ALIAS) -> RelayState:
    """Say how far the relay of a database is, and which sessions it waits for.

    Args:
        using: Database alias.
    """
    gaps = RelayGap.objects.using(using)
    ids = OutboxMessage.objects.using(using).order_by("-id").values_list("id", flat=True)
    positions = RelayCursor.objects.using(using).values_list("position", flat=True)
    writers: list[Session] = []
    relays: list[Session] = []
    if connections[using].vendor == "postgresql":
        writers = _sessions(_WRITERS, [OutboxMessage._meta.db_table], using)
        relays = _sessions(_RELAY, [], using)
    return RelayState(
        position=positions.first(),
        last_id=ids.first() or 0,
        gaps=gaps.count(),
        oldest_gap=gaps.order_by("first_id").values_list("first_id", "last_id").first(),
        relay=relays[0] if relays else None,
        writers=tuple(sorted(writers, key=lambda session: -session.age)),
    )


def _sessions(statement: str, parameters: list[Any], using: str) -> list[Session]:
    with connections[using].cursor() as cursor:
        cursor.execute(statement, parameters)
        return [
            Session(
                pid=pid,
                name=name,
                user=user,
                age=max(age or 0.0, 0.0),
                state=state,
                waits_for=waits_for,
                statement=opening(query),
                blocked_by=tuple(blocked_by),
            )
            for pid, name, user, age, state, waits_for, query, blocked_by in cursor.fetchall()
        ]


def opening(statement: str) -> str:
    """The first words of an SQL statement: what it does to which table, and no value.

    At most six words, none of them behind a quote, a bracket, a number or a sign.
    """
    found = _OPENING.match(statement)
    return " ".join(found.group(1).split()) if found else ""
