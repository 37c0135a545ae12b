"""How far each consumer group is in each partition, where it stands still, what it has not read."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Max, Min

from folio_events import dialects, topics
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.exceptions import FolioEventsError
from folio_events.message import Record, TopicPartition
from folio_events.models import ConsumerOffset, Delivery
from folio_events.receivers import registry

#: Seconds for reading the first unhandled records of all groups.
_READING = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPosition:
    """How far a group is in a partition.

    Attributes:
        offset: Next offset that it handles; None: it has not begun.
        lag: How many records it has not handled; None where the broker was not asked.
        moved_at: When it last handled a batch.
    """

    group: str
    topic: str
    partition: int
    offset: int | None
    lag: int | None
    moved_at: datetime | None


def positions(*, broker: Broker | None, using: str = DEFAULT_DB_ALIAS) -> list[GroupPosition]:
    """List how far all groups are, of a database and of this project's receivers.

    Args:
        broker: Asked for the ends of partitions; None: nobody is asked, so lags are unknown and
            groups that have not begun are left out.
        using: Database alias of the offsets.

    Raises:
        BrokerError: The broker does not answer.
    """
    rows = ConsumerOffset.objects.using(using).values("group", "topic", "partition")
    known = {
        (row["group"], TopicPartition(row["topic"], row["partition"])): row
        for row in rows.annotate(at=Min("offset"), moved=Max("updated_at"))
    }
    ends = {} if broker is None else _ends(broker, {place.topic for _, place in known})
    found = []
    for group, place in sorted({*known, *_listening(ends)}):
        row = known.get((group, place))
        offset = None if row is None else row["at"]
        low, high = ends.get(place, (0, None))
        found.append(
            GroupPosition(
                group=group,
                topic=place.topic,
                partition=place.partition,
                offset=offset,
                lag=None if high is None else max(high - max(offset or 0, low), 0),
                moved_at=None if row is None else row["moved"],
            )
        )
    return found


def _ends(broker: Broker, names: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
    names = {*names, *broker.list_topics(f"{get_settings().ENV}.")}
    return {
        TopicPartition(topic, partition): ends
        for topic, use in broker.describe_use(names).items()
        for partition, ends in use.ends.items()
    }


def _listening(
    ends: Mapping[TopicPartition, tuple[int, int]],
) -> Iterator[tuple[str, TopicPartition]]:
    for place in ends:
        logical = topics.parse_wire_topic(place.topic).topic
        for receiver in registry:
            if receiver.listens_to(logical):
                yield receiver.group, place


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedPartition:
    """A partition in which a receiver with order="partition" waits for a delivery.

    Attributes:
        topic: On the broker.
        delivery: Id of the one that it waits for.
        state: Of that delivery, "retrying" or "dead".
        since: When it was made.
        error: Class of its last error.
    """

    group: str
    receiver: str
    topic: str
    partition: int
    delivery: int
    state: str
    since: datetime
    error: str


def stopped_partitions(*, using: str = DEFAULT_DB_ALIAS) -> list[StoppedPartition]:
    """List the partitions that go on only when a delivery is settled, the longest stopped first.

    Args:
        using: Database alias.
    """
    in_order = {
        receiver.name: receiver.group
        for receiver in registry
        if receiver.order == "partition" and receiver.using == using
    }
    rows = Delivery.objects.using(using).filter(
        state__in=Delivery.OPEN, order="partition", receiver__in=in_order
    )
    places = rows.order_by().values("receiver", "topic", "partition")
    firsts = list(places.annotate(first=Min("id")).values_list("first", flat=True))
    return [
        StoppedPartition(
            group=in_order[row.receiver],
            receiver=row.receiver,
            topic=row.topic,
            partition=row.partition,
            delivery=row.pk,
            state=row.state,
            since=row.created_at,
            error=row.error_class,
        )
        for row in rows.filter(pk__in=firsts)
        .order_by("created_at", "pk")
        .only("receiver", "topic", "partition", "state", "created_at", "error_class")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadEvent:
    """The first event of a partition that a group has not handled."""

    group: str
    topic: str
    partition: int
    offset: int
    published_at: datetime
    #: Empty where the record cannot be decoded.
    type: str
    tenant: str
    #: None where the record cannot be decoded.
    event_id: UUID | None


def first_unread(found: Iterable[GroupPosition], *, broker: Broker) -> list[UnreadEvent]:
    """Read the first record that each group has not handled, of each partition.

    Args:
        found: As ``positions()`` returned them.
        broker: Where the records are.

    Returns:
        Those that could be read within three seconds.

    Raises:
        BrokerError: The broker does not answer.
    """
    behind: dict[str, dict[TopicPartition, int]] = defaultdict(dict)
    for one in found:
        if one.lag:
            behind[one.group][TopicPartition(one.topic, one.partition)] = one.offset or 0
    deadline = time.monotonic() + _READING
    return [
        _event(group, record)
        for group, starts in behind.items()
        for record in _read_first(broker, starts, deadline)
    ]


def _read_first(
    broker: Broker, starts: Mapping[TopicPartition, int], deadline: float
) -> Iterator[Record]:
    missing = set(starts)
    names = sorted({place.topic for place in starts})
    reader = broker.read(names, latest=False, known=starts)
    try:
        while missing and time.monotonic() < deadline:
            for record in reader.poll(len(missing) * 10, 0.2):
                if record.topic_partition in missing:
                    missing.discard(record.topic_partition)
                    yield record
    finally:
        reader.close()


def _event(group: str, record: Record) -> UnreadEvent:
    kind, tenant, event_id = "", topics.parse_wire_topic(record.topic).tenant, None
    try:
        event = dialects.decode(record)
        kind, tenant, event_id = event.type, event.tenant, event.id
    except FolioEventsError:
        pass
    return UnreadEvent(
        group=group,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        published_at=record.published_at,
        type=kind,
        tenant=tenant or "",
        event_id=event_id,
    )
