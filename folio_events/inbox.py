"""Writer of inbox entries and consumer offsets: what took effect, and how far a group is."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from django.db import connections
from django.db.models import Q
from django.utils import timezone

from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, InboxEntry


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
    quote = connection.ops.quote_name
    meta = InboxEntry._meta
    prepare_id = meta.get_field("event_id").get_db_prep_value
    now = connection.ops.adapt_datetimefield_value(timezone.now())
    wanted = list(effects)
    fresh: set[Effect] = set()
    chunk = (connection.features.max_query_params or 8000) // 4
    with connection.cursor() as cursor:
        for start in range(0, len(wanted), chunk):
            part = wanted[start : start + chunk]
            values = ", ".join(["(%s, %s, %s, %s)"] * len(part))
            cursor.execute(
                f"INSERT INTO {quote(meta.db_table)} (receiver, event_id, replay, handled_at) "  # noqa: S608
                f"VALUES {values} ON CONFLICT DO NOTHING RETURNING receiver, event_id, replay",
                [
                    value
                    for effect in part
                    for value in (
                        effect.receiver,
                        prepare_id(effect.event_id, connection),
                        effect.replay,
                        now,
                    )
                ],
            )
            fresh.update(
                Effect(name, _uuid(event_id), replay)
                for name, event_id, replay in cursor.fetchall()
            )
    return fresh


def _uuid(value: object) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))


def offsets(
    group: str, places: Iterable[TopicPartition], *, using: str
) -> dict[TopicPartition, int]:
    """Read the next offset of each partition that has one."""
    return {
        TopicPartition(topic, partition): offset
        for topic, partition, offset in ConsumerOffset.objects.using(using)
        .filter(_rows(group, places, using))
        .values_list("topic", "partition", "offset")
    }


def start_offsets(group: str, starts: Mapping[TopicPartition, int], *, using: str) -> None:
    """Make the rows of partitions that are met for the first time, so that they can be locked."""
    now = timezone.now()
    ConsumerOffset.objects.using(using).bulk_create(
        [
            ConsumerOffset(
                group=group,
                topic=place.topic,
                partition=place.partition,
                database=using,
                offset=offset,
                updated_at=now,
            )
            for place, offset in starts.items()
        ],
        ignore_conflicts=True,
    )


def lock_offsets(
    group: str, places: Iterable[TopicPartition], *, using: str, wait: bool
) -> dict[TopicPartition, int]:
    """Lock the offset rows in the transaction of the caller.

    Args:
        group: Consumer group.
        places: Partitions that have a row.
        using: Database alias.
        wait: False leaves out rows that another consumer has locked.

    Returns:
        The next offset of each row that was locked.
    """
    rows = (
        ConsumerOffset.objects.using(using)
        .select_for_update(skip_locked=not wait)
        .filter(_rows(group, places, using))
        .order_by("topic", "partition")
        .values_list("topic", "partition", "offset")
    )
    return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}


def advance(group: str, positions: Mapping[TopicPartition, int], *, using: str) -> None:
    """Write the next offsets of rows that the caller has locked."""
    now = timezone.now()
    for place, offset in positions.items():
        ConsumerOffset.objects.using(using).filter(_rows(group, [place], using)).update(
            offset=offset, updated_at=now
        )


def _rows(group: str, places: Iterable[TopicPartition], using: str) -> Q:
    by_topic: dict[str, list[int]] = {}
    for place in places:
        by_topic.setdefault(place.topic, []).append(place.partition)
    found = Q(pk__in=[])
    for topic, partitions in by_topic.items():
        found |= Q(topic=topic, partition__in=partitions)
    return found & Q(group=group, database=using)
