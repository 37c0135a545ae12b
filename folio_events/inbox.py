"""Writer of inbox entries and consumer offsets: what took effect, and how far a group is."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from folio_events.exceptions import FencedError
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, InboxEntry

_OFFSETS = ConsumerOffset._meta.db_table
#: Longest time between the note of a beginning and the lock of the work itself.
_BEGINNING = timedelta(seconds=2)


class Effect(NamedTuple):
    """An event in a receiver; ``replay`` is 0 but for replays."""

    receiver: str
    event_id: uuid.UUID
    replay: int = 0


def record(effects: Collection[Effect], *, using: str) -> set[Effect]:
    """Note effects in the transaction that makes them.

    Returns:
        Those that were not noted before: the receivers that have to run.
    """
    if not effects:
        return set()
    connection = connections[using]
    table = InboxEntry._meta.db_table
    now = connection.ops.adapt_datetimefield_value(timezone.now())
    columns = "receiver, event_id, replay, handled_at"
    tail = "ON CONFLICT DO NOTHING RETURNING receiver, event_id, replay"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # A placeholder for each value would cost more than the insert itself.
            names, event_ids, replays = map(list, zip(*effects, strict=True))
            cursor.execute(
                f"INSERT INTO {table} ({columns}) SELECT *, %s::timestamptz "  # noqa: S608
                f"FROM unnest(%s::text[], %s::uuid[], %s::int[]) {tail}",
                [now, names, event_ids, replays],
            )
            return set(map(Effect._make, cursor.fetchall()))
        fresh: set[Effect] = set()
        wanted = list(effects)
        chunk = (connection.features.max_query_params or 8000) // 4
        for start in range(0, len(wanted), chunk):
            part = wanted[start : start + chunk]
            values = ", ".join(["(%s, %s, %s, %s)"] * len(part))
            cursor.execute(
                f"INSERT INTO {table} ({columns}) VALUES {values} {tail}",  # noqa: S608
                [v for name, event_id, replay in part for v in (name, event_id.hex, replay, now)],
            )
            fresh.update(
                Effect(name, uuid.UUID(event_id), replay)
                for name, event_id, replay in cursor.fetchall()
            )
    return fresh


def seen(effect: Effect, *, using: str) -> bool:
    """Whether an effect is noted."""
    return (
        InboxEntry.objects.using(using)
        .filter(receiver=effect.receiver, event_id=effect.event_id, replay=effect.replay)
        .exists()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A group's offsets for the receivers of one database, or for those without one.

    Attributes:
        group: Consumer group.
        database: Alias of the receivers' database; "" for those without a transaction.
    """

    group: str
    database: str

    @property
    def using(self) -> str:
        """Alias of the database that keeps the offsets."""
        return self.database or DEFAULT_DB_ALIAS

    def rows(self, places: Iterable[TopicPartition]) -> QuerySet[ConsumerOffset]:
        """The offset rows of some partitions."""
        by_topic: dict[str, list[int]] = {}
        for place in places:
            by_topic.setdefault(place.topic, []).append(place.partition)
        wanted = Q(pk__in=[])
        for topic, partitions in by_topic.items():
            wanted |= Q(topic=topic, partition__in=partitions)
        return ConsumerOffset.objects.using(self.using).filter(
            wanted, group=self.group, database=self.database
        )


class Position(NamedTuple):
    """The next offset of a partition, and the id of the topic that it counts in."""

    offset: int
    topic_id: str = ""
    #: Number of the replay that a reset of offsets began, and the offset from which on it is over.
    replay: int = 0
    replay_end: int = 0


def has_begun(lane: Lane) -> bool:
    """Whether a group has an offset of any partition."""
    rows = ConsumerOffset.objects.using(lane.using)
    return rows.filter(group=lane.group, database=lane.database).exists()


def positions(lane: Lane, places: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
    """Read the position in each partition that has one."""
    return _positions(lane.rows(places))


def locked_positions(
    lane: Lane, places: Iterable[TopicPartition]
) -> dict[TopicPartition, Position]:
    """Read positions, and have consumers wait until the transaction of the caller ends."""
    rows = lane.rows(places).order_by("topic", "partition")
    return _positions(rows.select_for_update())


def _positions(rows: QuerySet[ConsumerOffset]) -> dict[TopicPartition, Position]:
    found = rows.values_list("topic", "partition", *Position._fields)
    return {TopicPartition(*row[:2]): Position(*row[2:]) for row in found}


def start(lane: Lane, starts: Mapping[TopicPartition, Position]) -> None:
    """Make the rows of partitions that are met for the first time, so that they can be locked."""
    now = timezone.now()
    ConsumerOffset.objects.using(lane.using).bulk_create(
        [
            ConsumerOffset(
                group=lane.group,
                topic=place.topic,
                partition=place.partition,
                database=lane.database,
                offset=position.offset,
                topic_id=position.topic_id,
                updated_at=now,
            )
            for place, position in starts.items()
        ],
        ignore_conflicts=True,
    )


def lock(lane: Lane, expected: Mapping[TopicPartition, int], *, wait: bool) -> None:
    """Lock offset rows in the transaction of the caller, and see that nobody moved them.

    Args:
        lane: Whose.
        expected: The next offset of each partition.
        wait: Whether to wait for another consumer's lock, or give way to it.

    Raises:
        FencedError: Another consumer holds them or has moved them on.
    """
    connection = connections[lane.using]
    locking = ""
    if connection.features.has_select_for_update:
        locking = connection.ops.for_update_sql(skip_locked=not wait)
    with connection.cursor() as cursor:
        cursor.execute(
            f'SELECT topic, partition, "offset" FROM {_OFFSETS} '  # noqa: S608 - fixed names
            f"{_where(len(expected))} ORDER BY topic, partition {locking}",
            [lane.group, lane.database, *(part for place in expected for part in place)],
        )
        found = {TopicPartition(*place): offset for *place, offset in cursor.fetchall()}
    if found != dict(expected):
        raise FencedError(f"another consumer of group {lane.group!r} is at these partitions")


def advance(lane: Lane, ends: Mapping[TopicPartition, int]) -> None:
    """Write the next offsets of rows that the caller has locked, in one statement."""
    connection = connections[lane.using]
    now = connection.ops.adapt_datetimefield_value(timezone.now())
    cases = " ".join(["WHEN topic = %s AND partition = %s THEN %s"] * len(ends))
    with connection.cursor() as cursor:
        cursor.execute(
            f'UPDATE {_OFFSETS} SET updated_at = %s, "offset" = CASE {cases} END '  # noqa: S608
            f"{_where(len(ends))}",
            [
                now,
                *(value for place, offset in ends.items() for value in (*place, offset)),
                lane.group,
                lane.database,
                *(part for place in ends for part in place),
            ],
        )


def reset(lane: Lane, moved: Mapping[TopicPartition, Position]) -> None:
    """Move positions that the caller has locked, or make them, to wherever."""
    now = timezone.now()
    for place, position in moved.items():
        ConsumerOffset.objects.using(lane.using).update_or_create(
            group=lane.group,
            database=lane.database,
            **place._asdict(),
            defaults={
                **position._asdict(),
                "started_offset": None,
                "starts": 0,
                "updated_at": now,
            },
        )


def _where(places: int) -> str:
    # Raw, since each batch asks, and Django takes longer to build the statement than the
    # database to run it.
    listed = ", ".join(["(%s, %s)"] * places)
    return f'WHERE "group" = %s AND database = %s AND (topic, partition) IN (VALUES {listed})'


def begin(lane: Lane, place: TopicPartition, offset: int, *, wait: bool) -> int:
    """Note, in a transaction of its own, that a member is about to begin at an offset.

    The note outlives a process that the work kills.

    Returns:
        How often work was begun at this offset without an end, this time included.

    Raises:
        FencedError: Another consumer is at this partition.
    """
    now = timezone.now()
    with transaction.atomic(using=lane.using):
        lock(lane, {place: offset}, wait=wait)
        row = lane.rows([place]).get()
        again = row.started_offset == offset
        if again and not wait and now - row.updated_at < _BEGINNING:
            # Where nobody hands partitions out, it may be a member that is about to lock.
            raise FencedError(f"another consumer of group {lane.group!r} begins here")
        starts = row.starts + 1 if again else 1
        lane.rows([place]).update(started_offset=offset, starts=starts, updated_at=now)
    return starts


def end(lane: Lane, places: Collection[TopicPartition]) -> None:
    """Take back what ``begin()`` noted: the member is alive."""
    if places:
        lane.rows(places).update(started_offset=None, starts=0)


def group_offsets(topic: str, *, databases: Collection[str]) -> dict[str, dict[int, int]]:
    """Read how far each group is in a topic; the receivers that are furthest behind decide.

    Args:
        topic: Name on the broker.
        databases: Of the lanes: aliases, and "" for receivers without a transaction.

    Returns:
        Group to partition to next offset.
    """
    found: dict[str, dict[int, int]] = {}
    for using in {Lane(group="", database=database).using for database in databases}:
        rows = ConsumerOffset.objects.using(using).filter(topic=topic)
        for group, partition, offset in rows.values_list("group", "partition", "offset"):
            known = found.setdefault(group, {})
            known[partition] = min(offset, known.get(partition, offset))
    return found


def forget_topics(topics: Collection[str], *, databases: Collection[str]) -> None:
    """Remove the offsets of topics that were deleted.

    Args:
        topics: Names on the broker.
        databases: As for ``group_offsets()``.
    """
    for using in {Lane(group="", database=database).using for database in databases}:
        ConsumerOffset.objects.using(using).filter(topic__in=topics).delete()
