"""What waits, tenant by tenant: counted in the outbox, sampled behind a consumer group."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import Count, Min

from folio_events import topics
from folio_events.brokers.base import Broker
from folio_events.conf import get_settings
from folio_events.dialects import read_headers
from folio_events.message import Record, TopicPartition
from folio_events.models import ConsumerOffset, OutboxMessage, RelayCursor, RelayGap
from folio_events.ownership import tenant_of
from folio_events.receivers import registry

#: Places of a partition's lag, evenly spread, at which records are read.
_WINDOWS = 5
_IN_GAPS = f"""
SELECT o.id FROM {RelayGap._meta.db_table} g JOIN {OutboxMessage._meta.db_table} o
ON o.id BETWEEN g.first_id AND g.last_id WHERE o.id <= %s
"""  # noqa: S608 - fixed names
_CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLag:
    """What waits of one tenant."""

    #: How many messages, or about how many.
    messages: int
    #: When the oldest of them was recorded or published, as far as it was seen.
    oldest_at: datetime


def outbox_lag(*, using: str = DEFAULT_DB_ALIAS) -> dict[str, TenantLag]:
    """Count what waits to be published, withheld messages aside.

    Exact, and reads no rows but those that wait.

    Args:
        using: Database alias.

    Returns:
        By tenant; "" without tenancy.
    """
    rows = OutboxMessage.objects.using(using)
    found: dict[str, TenantLag] = {}
    with transaction.atomic(using=using):
        position = RelayCursor.objects.using(using).values_list("position", flat=True).first() or 0
        with connections[using].cursor() as cursor:
            cursor.execute(_IN_GAPS, [position])
            held = [row_id for (row_id,) in cursor.fetchall()]
        parts = [rows.filter(id__gt=position)]
        parts += [
            rows.filter(id__in=held[start : start + _CHUNK])
            for start in range(0, len(held), _CHUNK)
        ]
        for part in parts:
            for tenant, count, oldest in _by_tenant(part):
                before = found.get(tenant)
                found[tenant] = TenantLag(
                    messages=count + (before.messages if before else 0),
                    oldest_at=min(oldest, before.oldest_at) if before else oldest,
                )
    return found


def _by_tenant(rows: Any) -> Iterable[tuple[str, int, datetime]]:
    counted = rows.order_by().values("tenant").annotate(count=Count("id"), at=Min("occurred_at"))
    return list(counted.values_list("tenant", "count", "at"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLag:
    """What a consumer group has not handled."""

    #: How many messages, by the offsets of all partitions.
    messages: int
    #: How many of them were looked at.
    sampled: int
    #: About how many each tenant has; "" stands for messages that name none.
    tenants: Mapping[str, TenantLag]


def group_lag(group: str, *, broker: Broker, sample: int = 2000, timeout: float = 10.0) -> GroupLag:
    """Say what waits for a consumer group, and whose it is by a sample of it.

    Each partition is read at some places evenly spread over what waits there, and its
    messages are shared out as those that were read. Where no more than the sample waits, all
    of it is read and the numbers are exact.

    Args:
        group: Consumer group of this project.
        broker: Where its topics are.
        sample: About how many messages are read.
        timeout: Seconds after which what was read has to do.

    Raises:
        BrokerError: The broker does not answer.
    """
    lags, ends = _lags(group, broker)
    total = sum(lag for _, lag in lags.values())
    if not total:
        return GroupLag(messages=0, sampled=0, tenants={})
    windows = 1 if total <= sample else _WINDOWS
    deadline = time.monotonic() + timeout
    seen: dict[TopicPartition, dict[int, Record]] = defaultdict(dict)
    for number in range(windows):
        starts = {place: start + lag * number // windows for place, (start, lag) in lags.items()}
        wanted = {
            place: lag if windows == 1 else max(sample * lag // (total * windows), 1)
            for place, (_, lag) in lags.items()
        }
        for record in _read(broker, {**ends, **starts}, ends, wanted, deadline):
            seen[record.topic_partition][record.offset] = record
    return _estimate(lags, seen)


def _lags(
    group: str, broker: Broker
) -> tuple[dict[TopicPartition, tuple[int, int]], dict[TopicPartition, int]]:
    """First offset and number of unhandled messages, where there are any, and all ends."""
    receivers = registry.in_group(group)
    subscribed = topics.subscriptions(receiver.topic for receiver in receivers)
    known = broker.list_topics(f"{get_settings().ENV}.")
    names = {
        name
        for name in known
        if any(re.search(one, name) if one[0] == "^" else one == name for one in subscribed)
    }
    handled: dict[TopicPartition, int] = {}
    for receiver in receivers:
        rows = ConsumerOffset.objects.using(receiver.using).filter(group=group, topic__in=names)
        for topic, partition, offset in rows.values_list("topic", "partition", "offset"):
            place = TopicPartition(topic, partition)
            handled[place] = min(offset, handled.get(place, offset))
    lags, ends = {}, {}
    for topic, use in broker.describe_use(names).items():
        for partition, (low, high) in use.ends.items():
            place = TopicPartition(topic, partition)
            start = max(handled.get(place, low), low)
            ends[place] = high
            if high > start:
                lags[place] = (start, high - start)
    return lags, ends


def _read(
    broker: Broker,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    wanted: Mapping[TopicPartition, int],
    deadline: float,
) -> Iterable[Record]:
    """The first records from some offsets on, as many of each partition as are wanted."""
    left = dict(wanted)
    names = sorted({place.topic for place in wanted})
    there = {place: offset for place, offset in starts.items() if place.topic in names}
    reader = broker.read(names, latest=False, known=there)
    try:
        while left and time.monotonic() < deadline:
            for record in reader.poll(max(sum(left.values()), 1), 0.2):
                place = record.topic_partition
                if left.get(place, 0) > 0 and record.offset < ends[place]:
                    yield record
                    left[place] -= 1
            left = {
                place: count
                for place, count in left.items()
                if count > 0 and reader.positions.get(place, 0) < ends[place]
            }
    finally:
        reader.close()


def _estimate(
    lags: Mapping[TopicPartition, tuple[int, int]],
    seen: Mapping[TopicPartition, Mapping[int, Record]],
) -> GroupLag:
    shares: Counter[str] = Counter()
    oldest: dict[str, datetime] = {}
    for place, (_, lag) in lags.items():
        records = seen.get(place, {}).values()
        for record in records:
            tenant = _tenant(record)
            shares[tenant] += lag / len(records)  # type: ignore[assignment]  # parts of messages
            oldest[tenant] = min(record.published_at, oldest.get(tenant, record.published_at))
    return GroupLag(
        messages=sum(lag for _, lag in lags.values()),
        sampled=sum(map(len, seen.values())),
        tenants={
            tenant: TenantLag(messages=round(share), oldest_at=oldest[tenant])
            for tenant, share in shares.items()
        },
    )


def _tenant(record: Record) -> str:
    segment = topics.parse_wire_topic(record.topic).tenant
    return tenant_of(read_headers(record.headers), segment) or ""
