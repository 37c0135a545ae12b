"""The database broker: a durable log in the project's own database, the embedded default."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db import Error as DatabaseError

from folio_events.brokers.base import (
    Acknowledgement,
    Aside,
    Broker,
    PartitionState,
    Positions,
    Report,
    Revoke,
    Subscription,
    TopicSpec,
    TopicState,
    TopicUse,
    partition_of,
)
from folio_events.connection import impatient
from folio_events.exceptions import BrokerUnavailableError, MessageTooLargeError, PublishError
from folio_events.message import Message, Record, TopicPartition, decode_headers, encode_headers
from folio_events.models import BrokerPartition, BrokerRecord

#: Seconds between two looks for records.
_POLL_INTERVAL = 0.05


class DatabaseBroker(Broker):
    """Topics as rows.

    Options:
        using: Database alias, default "default".
        max_message_bytes: Largest message, default 1,048,576 as Kafka's.
    """

    keeps_topics = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.using = str(options.get("using", DEFAULT_DB_ALIAS))

    def lives_in(self, using: str) -> bool:
        return using == self.using

    def missing_topics(self, names: Collection[str]) -> set[str]:
        found = BrokerPartition.objects.using(self.using).filter(topic__in=names)
        return set(names) - set(found.values_list("topic", flat=True))

    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        wanted = {spec.name: spec for spec in specs}
        missing = self.missing_topics(wanted)
        BrokerPartition.objects.using(self.using).bulk_create(
            [
                BrokerPartition(topic=name, partition=number)
                for name in sorted(missing)
                for number in range(wanted[name].partitions)
            ],
            ignore_conflicts=True,
        )
        return missing

    def ping(self, *, timeout: float) -> None:
        try:
            with impatient(lock=timeout, statement=timeout, using=self.using):
                for table in (BrokerPartition, BrokerRecord):
                    table.objects.using(self.using).exists()
        except DatabaseError as error:
            raise BrokerUnavailableError(f"database {self.using!r}: {error}") from error

    def list_topics(self, prefix: str) -> set[str]:
        rows = BrokerPartition.objects.using(self.using).filter(topic__startswith=prefix)
        # LIKE of SQLite does not tell cases apart.
        return {name for name in rows.values_list("topic", flat=True) if name.startswith(prefix)}

    def describe_topics(self, names: Collection[str]) -> dict[str, TopicState]:
        return {topic: TopicState(len(ends)) for topic, ends in self._ends(names).items()}

    def _ends(self, names: Collection[str]) -> dict[str, dict[int, int]]:
        """Topic to partition to the offset after the last."""
        rows = BrokerPartition.objects.using(self.using).filter(topic__in=names)
        ends: dict[str, dict[int, int]] = defaultdict(dict)
        for topic, number, end in rows.values_list("topic", "partition", "next_offset"):
            ends[topic][number] = end
        return dict(ends)

    def grow_topics(self, partitions: Mapping[str, int]) -> None:
        for topic, ends in self._ends(partitions).items():
            if partitions[topic] <= len(ends):
                raise PublishError(f"{topic} has {len(ends)} partitions already")
            BrokerPartition.objects.using(self.using).bulk_create(
                [
                    BrokerPartition(topic=topic, partition=number)
                    for number in range(len(ends), partitions[topic])
                ],
                ignore_conflicts=True,
            )

    def delete_topics(self, names: Collection[str]) -> set[str]:
        with transaction.atomic(using=self.using):
            # The partitions' locks keep a relay from writing records of a topic that goes.
            deleted = set(self._lock_partitions(names))
            BrokerRecord.objects.using(self.using).filter(topic__in=deleted).delete()
            BrokerPartition.objects.using(self.using).filter(topic__in=deleted).delete()
        return deleted

    def describe_use(self, names: Collection[str]) -> dict[str, TopicUse]:
        found: dict[str, TopicUse] = {}
        for topic, ends in self._ends(names).items():
            records = BrokerRecord.objects.using(self.using).filter(topic=topic)
            reach: dict[int, tuple[int, int]] = {}
            stamps: list[int] = []
            for number, end in ends.items():
                inside = records.filter(partition=number).order_by("offset")
                low = inside.values_list("offset", flat=True).first()
                reach[number] = (end if low is None else low, end)
                stamps += inside.reverse().values_list("timestamp", flat=True)[:1]
            # The consumers' own offset rows are the groups'.
            found[topic] = TopicUse(reach, newest=max(stamps, default=None))
        return found

    def max_message_bytes(self, topic: str) -> int | None:
        return int(self.options.get("max_message_bytes", 1_048_576))

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        reports: list[Report] = []
        refused: set[tuple[str, bytes]] = set()
        records: list[BrokerRecord] = []
        now = int(time.time() * 1000)
        with transaction.atomic(using=self.using):
            ends = self._lock_partitions({message.topic for message in messages})
            counts = {topic: len(partitions) for topic, partitions in ends.items()}
            for message in messages:
                chain = None if message.key is None else (message.topic, message.key)
                limit = self.max_message_bytes(message.topic)
                if chain in refused:
                    reports.append(PublishError("an earlier message of its key was refused"))
                    continue
                if limit is not None and message.size > limit:
                    reports.append(
                        MessageTooLargeError(f"{message.size} bytes, the topic takes {limit}")
                    )
                    if chain is not None:
                        refused.add(chain)
                    continue
                number = partition_of(message.key, counts[message.topic])
                offset = ends[message.topic][number]
                ends[message.topic][number] += 1
                records.append(
                    BrokerRecord(
                        topic=message.topic,
                        partition=number,
                        offset=offset,
                        key=message.key,
                        value=message.value,
                        headers=encode_headers(message.headers),
                        timestamp=now,
                    )
                )
                reports.append(Acknowledgement(number, offset))
            BrokerRecord.objects.using(self.using).bulk_create(records, batch_size=500)
            for topic, number in {(record.topic, record.partition) for record in records}:
                BrokerPartition.objects.using(self.using).filter(
                    topic=topic, partition=number
                ).update(next_offset=ends[topic][number])
        return reports

    def _lock_partitions(self, topics: Collection[str]) -> dict[str, dict[int, int]]:
        # Relays of several databases may write to one log; the lock keeps offsets dense.
        rows = (
            BrokerPartition.objects.using(self.using)
            .select_for_update()
            .filter(topic__in=topics)
            .order_by("topic", "partition")
            .values_list("topic", "partition", "next_offset")
        )
        ends: dict[str, dict[int, int]] = defaultdict(dict)
        for topic, number, offset in rows:
            ends[topic][number] = offset
        return ends

    def partition_states(
        self, topics: Collection[str], group: str | None = None
    ) -> dict[TopicPartition, PartitionState]:
        # The consumers' own offset rows are the group's.
        return {
            TopicPartition(topic, number): PartitionState(low, high)
            for topic, use in self.describe_use(topics).items()
            for number, (low, high) in use.ends.items()
        }

    def offsets_at(
        self, places: Collection[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        ends = self._ends({place.topic for place in places})
        found = {}
        for place in places:
            rows = BrokerRecord.objects.using(self.using).filter(**place._asdict())
            later = rows.filter(timestamp__gte=milliseconds).order_by("offset")
            first = later.values_list("offset", flat=True).first()
            found[place] = ends[place.topic][place.partition] if first is None else first
        return found

    def read_range(self, place: TopicPartition, first: int, end: int) -> Iterator[list[Record]]:
        while first < end and (records := _fetch(place, first, min(500, end - first), self.using)):
            first = records[-1].offset + 1
            yield records

    def group_members(self, group: str) -> list[str]:
        return []  # nobody hands partitions out; who works at one holds its lock

    def set_group_offsets(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing to do: the consumers' own offset rows are the group's."""

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke = lambda _places: None,
    ) -> Subscription:
        return DatabaseSubscription(self, topics, positions)


class DatabaseSubscription(Subscription):
    """Reads whatever partition has something; who may handle it is decided by a lock later."""

    exclusive = False

    def __init__(self, broker: DatabaseBroker, topics: Sequence[str], positions: Positions) -> None:
        self._using = broker.using
        self._names = [topic for topic in topics if not topic.startswith("^")]
        self._patterns = [re.compile(topic) for topic in topics if topic.startswith("^")]
        self._positions = positions
        self._turn = random.randrange(1000)  # noqa: S311 - spreads the members of a group
        self._closed = threading.Event()
        self._aside = Aside()

    def poll(self, limit: int, timeout: float) -> list[Record]:
        deadline = time.monotonic() + timeout
        while not (found := self._next(limit)):
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.wait(min(_POLL_INTERVAL, left)):
                break
        return found

    def _next(self, limit: int) -> list[Record]:
        waiting = self._partitions_with_records()
        self._turn += 1
        found: list[Record] = []
        # One partition a batch, each time another: what one member holds, the next leaves.
        for index in range(len(waiting)):
            place, position = waiting[(index + self._turn) % len(waiting)]
            found = _fetch(place, position, limit, self._using)
            if found:
                break
        return found

    def _partitions_with_records(self) -> list[tuple[TopicPartition, int]]:
        rows = (
            BrokerPartition.objects.using(self._using)
            .filter(next_offset__gt=0)
            .order_by("topic", "partition")
        )
        if not self._patterns:
            rows = rows.filter(topic__in=self._names)
        ends = {
            TopicPartition(topic, number): end
            for topic, number, end in rows.values_list("topic", "partition", "next_offset")
            if topic in self._names or any(pattern.match(topic) for pattern in self._patterns)
        }
        states = {place: PartitionState(0, end) for place, end in ends.items()}
        positions = self._positions(states) if states else {}
        waiting = []
        for place, end in ends.items():
            position = positions.get(place, 0)
            if position is not None and position < end and place not in self._aside:
                waiting.append((place, position))
        return waiting

    def pause(self, places: Collection[TopicPartition], seconds: float) -> None:
        self._aside.add(places, seconds)

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing to do: each poll asks for the positions anew."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing to do: the consumer's own offset rows are the group's."""

    def close(self) -> None:
        self._closed.set()


def _fetch(place: TopicPartition, position: int, limit: int, using: str) -> list[Record]:
    rows = (
        BrokerRecord.objects.using(using)
        .filter(topic=place.topic, partition=place.partition, offset__gte=position)
        .order_by("offset")
        .values_list("offset", "key", "value", "headers", "timestamp")[:limit]
    )
    return [
        Record(
            topic=place.topic,
            partition=place.partition,
            offset=offset,
            key=None if key is None else bytes(key),
            value=None if value is None else bytes(value),
            headers=decode_headers(bytes(headers)),
            timestamp=timestamp,
        )
        for offset, key, value, headers, timestamp in rows
    ]
