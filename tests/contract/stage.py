"""What the contract suites play with: a broker, topics of the test's own, readers and members."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from folio_events import inbox
from folio_events.brokers.base import Acknowledgement, Broker, Report, Subscription, TopicSpec
from folio_events.exceptions import FencedError
from folio_events.inbox import Position
from folio_events.message import Headers, Message, Record, TopicPartition

#: Seconds after which a condition that should come true counts as failed.
DEADLINE = 40.0


@dataclass
class Stage:
    """A broker, and what is closed after the test."""

    broker: Broker
    #: Makes the broker as another process would have it; the same one where it is in memory.
    make: Callable[[], Broker]
    closing: ExitStack
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")

    def name(self, ending: str = "topic") -> str:
        """A topic name that no other test has."""
        return f"{self.prefix}.{ending}"

    def topic(self, partitions: int = 1, *, ending: str = "topic") -> str:
        """Create a topic."""
        name = self.name(ending)
        self.broker.create_topics([TopicSpec(name, partitions, 1)])
        return name

    def other(self) -> Broker:
        """The broker of another process."""
        broker = self.make()
        if broker is not self.broker:
            self.closing.callback(broker.close)
        return broker

    def reader(
        self, *topics: str, at: Mapping[TopicPartition, int] | None = None, group: str = ""
    ) -> Reader:
        reader = Reader(self.broker, topics, group=group, at=at)
        self.closing.callback(reader.close)
        return reader

    def member(self, group: str, *topics: str) -> Member:
        member = Member(self.broker, group, topics)
        self.closing.callback(member.close)
        return member


class Reader:
    """A group of one that keeps for itself how far it is, and says so when it is asked."""

    def __init__(
        self,
        broker: Broker,
        topics: Sequence[str],
        *,
        group: str = "",
        at: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        self.at = dict(at or {})
        group = group or f"reader-{uuid.uuid4().hex}"
        self.subscription = broker.subscribe(group, topics, self._positions)

    def _positions(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.at[place] for place in places if place in self.at}

    def poll(self, limit: int = 1000, timeout: float = 0.5) -> list[Record]:
        records = self.subscription.poll(limit, timeout)
        self.at.update((record.topic_partition, record.offset + 1) for record in records)
        return records

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        self.at.update(positions)
        self.subscription.seek(positions)

    def read(self, count: int) -> list[Record]:
        """Poll until so many records came."""
        found: list[Record] = []
        until = time.monotonic() + DEADLINE
        while len(found) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} records came"
            found += self.poll()
        return found

    def close(self) -> None:
        self.subscription.close()


class Member:
    """A consumer in a group: it handles records and moves the group on, as a consumer does."""

    def __init__(self, broker: Broker, group: str, topics: Sequence[str]) -> None:
        self.lane = inbox.Lane(group=group, database="default")
        self.handled: list[Record] = []
        #: Partitions that positions were asked for since the member joined.
        self.given: set[TopicPartition] = set()
        self.subscription: Subscription = broker.subscribe(group, topics, self._positions)
        self._closed = False

    def _positions(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.given |= set(places)
        if self.subscription.exclusive:
            return {}  # the broker knows what the group has committed
        found = inbox.positions(self.lane, places)
        return {place: position.offset for place, position in found.items()}

    def step(self, timeout: float = 0.1) -> list[Record]:
        """Poll once; whoever cannot lock a partition that others see too leaves it to them."""
        records = self.subscription.poll(1000, timeout)
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            firsts.setdefault(record.topic_partition, record.offset)
        ends = {record.topic_partition: record.offset + 1 for record in records}
        if records and not self.subscription.exclusive:
            inbox.start(self.lane, {place: Position(first) for place, first in firsts.items()})
            try:
                with transaction.atomic():
                    inbox.lock(self.lane, firsts, wait=False)
                    inbox.advance(self.lane, ends)
            except FencedError:
                return []
        self.handled += records
        self.subscription.commit(ends)
        return records

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.subscription.close()


def turns(members: Iterable[Member], until: Callable[[], object]) -> None:
    """Let the members take turns until a condition is true."""
    members = list(members)
    end = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < end, f"still not so after {DEADLINE:.0f} s"
        for member in members:
            member.step()


def message(
    topic: str, value: bytes | None = b"{}", *, key: bytes | None = b"key", headers: Any = ()
) -> Message:
    pairs: Headers = list(headers)
    return Message(topic=topic, key=key, value=value, headers=pairs)


def publish(broker: Broker, messages: Sequence[Message]) -> list[Acknowledgement]:
    """Publish what has to be taken, and say where it stands."""
    reports = broker.publish(messages, timeout=DEADLINE)
    return [taken(report) for report in reports]


def taken(report: Report) -> Acknowledgement:
    assert isinstance(report, Acknowledgement), repr(report)
    return report


def values(records: Iterable[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def values_by_key(records: Iterable[Record]) -> dict[bytes | None, list[bytes | None]]:
    found: dict[bytes | None, list[bytes | None]] = {}
    for record in records:
        found.setdefault(record.key, []).append(record.value)
    return found


def counted(records: Iterable[Record]) -> Counter[bytes | None]:
    return Counter(values(records))
