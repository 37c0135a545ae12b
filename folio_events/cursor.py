"""The gap-aware cursor: reads the outbox in an order that keeps each key's commits in order.

Ids are drawn before transactions commit, so a row may become visible below ids that were
read already. The cursor remembers the ids it passed and did not see (gaps) together with
the transactions that could still bring them, asks for them until those have ended, and
waits for nobody. See docs/decisions/0003-gap-aware-cursor.md.
"""

from __future__ import annotations

import bisect
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from folio_events.models import OutboxMessage, RelayCursor, RelayGap

#: Most ranges of ids that one statement asks for; above it only the lowest are read.
MAX_RANGES = 10_000
_MAX_ID = 2**63 - 1

_COLUMNS = "id, event_id, topic, tenant, key, payload, repeating_headers, own_headers, occurred_at"
_TABLE = OutboxMessage._meta.db_table

# Raw, since each drain asks: Django takes longer to build such a statement than the database
# to run it.
_LOAD = f"SELECT version, position FROM {RelayCursor._meta.db_table}"  # noqa: S608 - fixed name
_SAVE = f"""
INSERT INTO {RelayCursor._meta.db_table} (id, position, version, updated_at)
VALUES (1, %s, %s, %s)
ON CONFLICT (id) DO UPDATE
SET position = excluded.position, version = excluded.version, updated_at = excluded.updated_at
"""  # noqa: S608 - fixed name

# One statement, so one snapshot: reading gaps and tail apart inverts events of a key. The
# first row carries the snapshot. LATERAL with a limit, since for a plain join the planner may
# read the whole table and look for each row's gap.
_READ = f"""
SELECT 0::bigint, NULL, pg_current_snapshot()::text, NULL, NULL,
       NULL::bytea, NULL::bytea, NULL::bytea, NULL::timestamptz
UNION ALL
(SELECT * FROM (
  (SELECT late.*
   FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS gap (first, last)
   CROSS JOIN LATERAL (
     SELECT o.id, o.event_id::text, o.topic, o.tenant, o.key, o.payload, o.repeating_headers,
            o.own_headers, o.occurred_at
     FROM {_TABLE} o WHERE o.id BETWEEN gap.first AND gap.last
     ORDER BY o.id LIMIT %(limit)s) AS late
   ORDER BY late.id LIMIT %(limit)s)
  UNION ALL
  (SELECT o.id, o.event_id::text, o.topic, o.tenant, o.key, o.payload, o.repeating_headers,
          o.own_headers, o.occurred_at
   FROM {_TABLE} o WHERE o.id > %(position)s
   ORDER BY o.id LIMIT %(limit)s)
) AS batch ORDER BY id LIMIT %(limit)s)
"""  # noqa: S608 - the table's name is fixed

# A condition for each range would soon be too deep for SQLite's parser.
_READ_SERIAL = f"""
SELECT {_COLUMNS} FROM {_TABLE} WHERE id > %s
UNION ALL
SELECT {_COLUMNS}
FROM (SELECT json_extract(value, '$[0]') AS first, json_extract(value, '$[1]') AS last
      FROM json_each(%s)) AS gap
CROSS JOIN {_TABLE} WHERE id BETWEEN gap.first AND gap.last
ORDER BY id LIMIT %s
"""  # noqa: S608 - the table's name is fixed

# Who may hold ids that are not visible: an insert takes this lock before it draws its id and
# keeps it to its end. Subtransactions have xids of their own; the smallest is the transaction's.
_HOLDERS = """
SELECT l.virtualtransaction, x.transactionid::text::bigint
FROM pg_locks l
LEFT JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction
  AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted
WHERE l.locktype = 'relation' AND l.relation = %s::regclass AND l.mode = 'RowExclusiveLock'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
"""


class OutboxRow(NamedTuple):
    """One row as the relay needs it."""

    id: int
    event_id: str
    topic: str
    tenant: str
    key: str | None
    #: None: a tombstone.
    payload: bytes | None
    repeating_headers: bytes
    own_headers: bytes
    occurred_at: datetime

    @property
    def chain(self) -> tuple[str, str, str] | None:
        """What its order is kept within; None for a row without key."""
        return None if self.key is None else (self.topic, self.tenant, self.key)

    def __repr__(self) -> str:
        # Never the body or a token: tracebacks and logs show this.
        return f"<OutboxRow {self.id} {self.topic} {self.event_id}>"


class Range(NamedTuple):
    """Outbox ids from first to last, both included."""

    first: int
    last: int


class Snapshot(NamedTuple):
    """Which transactions had ended when a statement read; 64-bit transaction ids."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the text form of ``pg_snapshot``: ``xmin:xmax:xip,xip``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in running.split(",") if x))

    def ended(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.running

    def widen(self, xid: int) -> int:
        """Make a 32-bit transaction id from near this snapshot 64 bits wide."""
        return self.xmax + (xid - self.xmax + 2**31) % 2**32 - 2**31


class Holders(NamedTuple):
    """Transactions that may still bring missing rows."""

    #: By transaction id: whether they ended is read off a snapshot.
    xids: frozenset[int] = frozenset()
    #: By virtual id, while they have no transaction id yet.
    vxids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.xids or self.vxids)


@dataclass(slots=True)
class Gaps:
    """The gaps of one cursor and what changed since they were stored."""

    #: To be asked for by the next statement. None: nobody here knows who may fill it.
    fresh: dict[Range, Holders | None] = field(default_factory=dict)
    #: By the transactions, all of them known by id, of which one must end first.
    waiting: dict[frozenset[int], set[Range]] = field(default_factory=dict)
    added: set[Range] = field(default_factory=set)
    removed: set[Range] = field(default_factory=set)

    def wake(self, snapshot: Snapshot) -> bool:
        """Make fresh all that may be visible to this snapshot.

        Returns:
            Whether there was any.
        """
        woken = [xids for xids in self.waiting if any(map(snapshot.ended, xids))]
        for xids in woken:
            self.fresh.update(dict.fromkeys(self.waiting.pop(xids), Holders(xids)))
        return bool(woken)

    def replace(self, before: Iterable[Range], after: Iterable[Range]) -> None:
        """Note for ``save()`` that some ranges gave way to others."""
        old, new = set(before), set(after)
        for gone in old - new:
            if gone in self.added:
                self.added.remove(gone)
            else:
                self.removed.add(gone)
        for come in new - old:
            if come in self.removed:
                self.removed.remove(come)
            else:
                self.added.add(come)


class OutboxCursor:
    """Reads the outbox of one database; used under the relay's lock only."""

    def __init__(self, using: str) -> None:
        self.using = using
        self._version: int | None = None
        #: As the database has it.
        self.stored_position = 0
        self.position = 0
        self.gaps = Gaps()

    @property
    def _connection(self) -> BaseDatabaseWrapper:
        return connections[self.using]

    def load(self) -> None:
        """Take over where the last relay stopped, unless that was this one."""
        with self._connection.cursor() as cursor:
            cursor.execute(_LOAD)
            version, position = cursor.fetchone() or (0, 0)
        if version == self._version:
            return
        self._version = version
        self.position = self.stored_position = position
        stored = RelayGap.objects.using(self.using).values_list("first_id", "last_id")
        self.gaps = Gaps(fresh={Range(first, last): None for first, last in stored})

    def forget(self) -> None:
        """Load from the database next time, as after a rolled-back transaction."""
        self._version = None

    def read(self, limit: int) -> list[OutboxRow]:
        """Read the next rows, late ones included, and move past them.

        Within one topic and key the order of ids is the order of commits, and no row is
        returned while an earlier one of its key may still be on its way.

        Args:
            limit: Most rows to return; at least 1.

        Returns:
            Rows in ascending order of id.
        """
        if self._connection.vendor != "postgresql":
            return self._read_serial(limit)
        if self.gaps.waiting:
            self.gaps.wake(self._snapshot())
        while True:
            asked = sorted(self.gaps.fresh)
            # Reading only up to some id is as exact as reading all: what lies above is
            # read by a later snapshot.
            tail = len(asked) <= MAX_RANGES
            asked = asked[:MAX_RANGES]
            snapshot, rows = self._read_once(asked, limit, tail=tail)
            # A holder may have ended between the first look and this statement; then its
            # rows are missing below rows that are here.
            if not self.gaps.wake(snapshot):
                break
        self._settle(asked, snapshot, rows, limit)
        return rows

    def hold_back(self, ids: Sequence[int]) -> None:
        """Have rows that were read returned again, since they could not be published.

        Args:
            ids: In ascending order.
        """
        ranges = list(_ranges(ids))
        self.gaps.fresh.update(dict.fromkeys(ranges, Holders()))
        self.gaps.replace([], ranges)

    def save(self) -> None:
        """Write position and gaps, if they changed, in the transaction of the caller."""
        gaps = self.gaps
        if (
            self._version
            and self.position == self.stored_position
            and not (gaps.added or gaps.removed)
        ):
            return
        stored = RelayGap.objects.using(self.using)
        gone = [gap.first for gap in gaps.removed]
        for start in range(0, len(gone), 500):
            stored.filter(first_id__in=gone[start : start + 500]).delete()
        if gaps.added:
            stored.bulk_create(
                [RelayGap(first_id=g.first, last_id=g.last) for g in gaps.added], batch_size=400
            )
        gaps.added, gaps.removed = set(), set()
        # Random: a count could come out the same in two processes after a rollback.
        self._version = secrets.randbits(62) or 1
        self.stored_position = self.position
        now = self._connection.ops.adapt_datetimefield_value(timezone.now())
        with self._connection.cursor() as cursor:
            cursor.execute(_SAVE, [self.position, self._version, now])

    def _read_serial(self, limit: int) -> list[OutboxRow]:
        # SQLite has one writer at a time and takes the ids of a rollback back: there are
        # no gaps but the rows that were held back.
        asked = sorted(self.gaps.fresh)
        with self._connection.cursor() as cursor:
            cursor.execute(_READ_SERIAL, [self.position, json.dumps(asked), limit])
            rows = [_converted(values) for values in cursor.fetchall()]
        left = []
        for gap in asked:
            del self.gaps.fresh[gap]
            if len(rows) == limit and gap.last > rows[-1].id:
                left.append(Range(max(gap.first, rows[-1].id + 1), gap.last))
        self.gaps.fresh.update(dict.fromkeys(left, Holders()))
        self.gaps.replace(asked, left)
        if rows:
            self.position = max(self.position, rows[-1].id)
        return rows

    def _snapshot(self) -> Snapshot:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_snapshot()::text")
            return Snapshot.parse(cursor.fetchone()[0])

    def _read_once(
        self, asked: Sequence[Range], limit: int, *, tail: bool
    ) -> tuple[Snapshot, list[OutboxRow]]:
        import psycopg

        self._connection.ensure_connection()
        parameters = {
            "first": [gap.first for gap in asked],
            "last": [gap.last for gap in asked],
            "position": self.position if tail else _MAX_ID,
            "limit": limit,
        }
        # Django's own cursors have no binary results, which save a fifth of the time.
        with (
            self._connection.wrap_database_errors,
            psycopg.Cursor(self._connection.connection) as cursor,
        ):
            cursor.execute(_READ, parameters, binary=True)
            (_, _, snapshot, *_), *found = cursor.fetchall()
        return Snapshot.parse(snapshot), [OutboxRow._make(values) for values in found]

    def _settle(
        self, asked: Sequence[Range], snapshot: Snapshot, rows: Sequence[OutboxRow], limit: int
    ) -> None:
        """Decide what each range that was asked for, and each new hole, means."""
        ids = [row.id for row in rows]
        reached = ids[-1] if len(ids) == limit else _MAX_ID
        unseen: list[Range] = []  # its possible owners are to be noted
        virtual: list[tuple[Range, Holders]] = []
        after: list[Range] = []
        for gap in asked:
            holders = self.gaps.fresh.pop(gap)
            if gap.last > reached:  # the limit cut it off
                rest = Range(max(gap.first, reached + 1), gap.last)
                self.gaps.fresh[rest] = holders
                after.append(rest)
            for piece in _missing(gap.first, min(gap.last, reached), ids):
                if holders is None:
                    unseen.append(piece)
                elif holders.vxids:
                    virtual.append((piece, holders))
                elif alive := frozenset(x for x in holders.xids if not snapshot.ended(x)):
                    self.gaps.waiting.setdefault(alive, set()).add(piece)
                    after.append(piece)
                # Else all that could bring it have ended and it is not there: rolled back.
        if ids and ids[-1] > self.position:
            unseen += _missing(self.position + 1, ids[-1], ids)
            self.position = ids[-1]
        if unseen or virtual:
            now = self._holders(snapshot)
            # A transaction is visible before it gives up its locks: the owner may be gone
            # from the set just read, so each is asked for once more whatever its holders.
            noted = Holders(
                frozenset(xid for xid in now.values() if xid is not None),
                frozenset(vxid for vxid, xid in now.items() if xid is None),
            )
            self.gaps.fresh.update(dict.fromkeys(unseen, noted))
            for piece, holders in virtual:
                self.gaps.fresh[piece] = _identify(holders, now)
        self.gaps.replace(asked, [*after, *unseen, *(piece for piece, _ in virtual)])

    def _holders(self, snapshot: Snapshot) -> dict[str, int | None]:
        """Read who may hold ids now: virtual id to 64-bit transaction id, if it has one."""
        found: dict[str, int | None] = {}
        with self._connection.cursor() as cursor:
            cursor.execute(_HOLDERS, [_TABLE])
            for vxid, xid in cursor.fetchall():
                wide = None if xid is None else snapshot.widen(xid)
                known = found.get(vxid)
                found[vxid] = wide if known is None or wide is None else min(known, wide)
        return found


def _identify(holders: Holders, now: dict[str, int | None]) -> Holders:
    """Say by transaction id what was known by virtual id only, as far as that is known now."""
    xids, vxids = set(holders.xids), set()
    for vxid in holders.vxids:
        if vxid not in now:
            # Ended - or prepared, which changes the virtual id.
            xids.update(xid for v, xid in now.items() if v.startswith("-1/") and xid is not None)
        elif (xid := now[vxid]) is None:
            vxids.add(vxid)
        else:
            xids.add(xid)
    return Holders(frozenset(xids), frozenset(vxids))


def _missing(first: int, last: int, ids: Sequence[int]) -> Iterator[Range]:
    """The ranges from first to last that the ascending ids leave out."""
    for position in range(bisect.bisect_left(ids, first), bisect.bisect_right(ids, last)):
        if ids[position] > first:
            yield Range(first, ids[position] - 1)
        first = ids[position] + 1
    if first <= last:
        yield Range(first, last)


def _ranges(ids: Iterable[int]) -> Iterator[Range]:
    """Ascending ids as ranges of neighbours."""
    start = end = None
    for number in ids:
        if start is None or end is None or number != end + 1:
            if start is not None and end is not None:
                yield Range(start, end)
            start = number
        end = number
    if start is not None and end is not None:
        yield Range(start, end)


def _converted(values: Sequence[Any]) -> OutboxRow:
    row = OutboxRow._make(values)
    moment: datetime | str = values[-1]
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return row._replace(
        event_id=str(UUID(row.event_id)),
        occurred_at=moment if moment.tzinfo else moment.replace(tzinfo=UTC),
    )
