"""The memory broker, for tests: a log in this process."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from folio_events.exceptions import BrokerUnavailableError, MessageTooLargeError, PublishError
from folio_events.message import Message, Record, TopicPartition


class MemoryBroker(Broker):
    """Keeps everything in memory.

    Options:
        max_message_bytes: Largest message, default 1,048,576.

    Attributes:
        available: Set it to False and the broker is down.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.available = True
        self._log: dict[str, list[list[Record]]] = {}
        self._configs: dict[str, dict[str, str]] = {}
        self._committed: dict[tuple[str, TopicPartition], int] = {}
        self._members: dict[str, list[MemorySubscription]] = defaultdict(list)
        self._changed = threading.Condition(threading.RLock())

    def _answer(self) -> None:
        if not self.available:
            raise BrokerUnavailableError("the memory broker is set unavailable")

    def missing_topics(self, names: Collection[str]) -> set[str]:
        self._answer()
        return set(names) - set(self._log)

    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        self._answer()
        with self._changed:
            new = [spec for spec in specs if spec.name not in self._log]
            for spec in new:
                self._log[spec.name] = [[] for _ in range(spec.partitions)]
                self._configs[spec.name] = dict(spec.config)
            self._changed.notify_all()
        return {spec.name for spec in new}

    def ping(self, *, timeout: float) -> None:
        self._answer()

    def list_topics(self, prefix: str) -> set[str]:
        self._answer()
        return {name for name in self._log if name.startswith(prefix)}

    def describe_topics(self, names: Collection[str]) -> dict[str, TopicState]:
        self._answer()
        return {
            name: TopicState(len(self._log[name]), config=dict(self._configs[name]))
            for name in names
            if name in self._log
        }

    def grow_topics(self, partitions: Mapping[str, int]) -> None:
        self._answer()
        with self._changed:
            for name, count in partitions.items():
                if count <= len(self._log[name]):
                    raise PublishError(f"{name} has {len(self._log[name])} partitions already")
                self._log[name] += [[] for _ in range(count - len(self._log[name]))]
            self._changed.notify_all()

    def configure_topics(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        self._answer()
        for name, config in configs.items():
            self._configs[name] |= config

    def delete_topics(self, names: Collection[str]) -> set[str]:
        self._answer()
        with self._changed:
            deleted = set(names) & set(self._log)
            for name in deleted:
                del self._log[name], self._configs[name]
            for group, place in list(self._committed):
                if place.topic in deleted:
                    del self._committed[group, place]
            self._changed.notify_all()
        self.known_topics -= deleted
        return deleted

    def describe_use(self, names: Collection[str]) -> dict[str, TopicUse]:
        self._answer()
        found: dict[str, TopicUse] = {}
        for name in set(names) & set(self._log):
            groups: dict[str, dict[int, int]] = defaultdict(dict)
            for (group, place), offset in self._committed.items():
                if place.topic == name:
                    groups[group][place.partition] = offset
            stamps = [log[-1].timestamp for log in self._log[name] if log]
            ends = {number: (0, len(log)) for number, log in enumerate(self._log[name])}
            found[name] = TopicUse(ends, groups, max(stamps, default=None))
        return found

    def max_message_bytes(self, topic: str) -> int | None:
        return int(self.options.get("max_message_bytes", 1_048_576))

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        if not self.available:
            return [BrokerUnavailableError("the memory broker is set unavailable")] * len(messages)
        refused: set[tuple[str, bytes]] = set()
        with self._changed:
            reports = [self._publish_one(message, refused) for message in messages]
            self._changed.notify_all()
        return reports

    def _publish_one(self, message: Message, refused: set[tuple[str, bytes]]) -> Report:
        limit = self.max_message_bytes(message.topic)
        if message.key is not None and (message.topic, message.key) in refused:
            return PublishError("an earlier message of its key was refused")
        if limit is not None and message.size > limit:
            if message.key is not None:
                refused.add((message.topic, message.key))
            return MessageTooLargeError(f"{message.size} bytes, the topic takes {limit}")
        partitions = self._log[message.topic]
        number = partition_of(message.key, len(partitions))
        log = partitions[number]
        log.append(
            Record(
                topic=message.topic,
                partition=number,
                offset=len(log),
                key=message.key,
                value=message.value,
                headers=list(message.headers),
                timestamp=int(time.time() * 1000),
            )
        )
        return Acknowledgement(number, len(log) - 1)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke = lambda _places: None,
    ) -> Subscription:
        return MemorySubscription(self, group, topics, positions)

    def partition_states(
        self, topics: Collection[str], group: str | None = None
    ) -> dict[TopicPartition, PartitionState]:
        self._answer()
        places = [
            TopicPartition(topic, number)
            for topic in sorted(set(topics) & set(self._log))
            for number in range(len(self._log[topic]))
        ]
        return {
            place: PartitionState(
                0,
                len(self._log[place.topic][place.partition]),
                self._committed.get((group or "", place)),
            )
            for place in places
        }

    def offsets_at(
        self, places: Collection[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        self._answer()
        logs = {place: self._log[place.topic][place.partition] for place in places}
        return {
            place: next((r.offset for r in log if r.timestamp >= milliseconds), len(log))
            for place, log in logs.items()
        }

    def read_range(self, place: TopicPartition, first: int, end: int) -> Iterator[list[Record]]:
        self._answer()
        for start in range(first, end, 500):
            yield self._log[place.topic][place.partition][start : min(start + 500, end)]

    def group_members(self, group: str) -> list[str]:
        self._answer()
        return [f"member {number}" for number in range(len(self._members[group]))]

    def set_group_offsets(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        self._answer()
        if self._members[group]:
            raise PublishError(f"group {group!r} has members")
        self._committed.update({(group, place): offset for place, offset in positions.items()})

    def records(self, topic: str) -> list[Record]:
        """All records of a topic, partition after partition."""
        return [record for log in self._log.get(topic, []) for record in log]


class MemorySubscription(Subscription):
    """A member of a group; partitions are shared out evenly among the members."""

    def __init__(
        self, broker: MemoryBroker, group: str, topics: Sequence[str], positions: Positions
    ) -> None:
        self._broker = broker
        self._group = group
        self._matchers = [re.compile(t if t.startswith("^") else re.escape(t)) for t in topics]
        self._start = positions
        self._positions: dict[TopicPartition, int | None] = {}
        self._aside = Aside()
        with broker._changed:  # noqa: SLF001 - the two halves of one thing
            broker._members[group].append(self)  # noqa: SLF001

    def _assigned(self) -> list[TopicPartition]:
        members = self._broker._members[self._group]  # noqa: SLF001
        every = [
            TopicPartition(topic, number)
            for topic, partitions in sorted(self._broker._log.items())  # noqa: SLF001
            if any(matcher.fullmatch(topic) for matcher in self._matchers)
            for number in range(len(partitions))
        ]
        return every[members.index(self) :: len(members)]

    def _next(self, limit: int) -> list[Record]:
        assigned = self._assigned()
        self._positions = {place: at for place, at in self._positions.items() if place in assigned}
        new = [place for place in assigned if place not in self._positions]
        if new:
            started = self._start({place: self._state(place) for place in new})
            for place in new:
                committed = self._broker._committed.get((self._group, place), 0)  # noqa: SLF001
                self._positions[place] = started.get(place, committed)
        found: list[Record] = []
        for place in assigned:
            position = self._positions[place]
            if position is None or place in self._aside:
                continue
            log = self._broker._log[place.topic][place.partition]  # noqa: SLF001
            part = log[position:][: limit - len(found)]
            self._positions[place] = position + len(part)
            found += part
        return found

    def _state(self, place: TopicPartition) -> PartitionState:
        log = self._broker._log[place.topic][place.partition]  # noqa: SLF001
        committed = self._broker._committed.get((self._group, place))  # noqa: SLF001
        return PartitionState(0, len(log), committed)

    def pause(self, places: Collection[TopicPartition], seconds: float) -> None:
        self._aside.add(places, seconds)

    def poll(self, limit: int, timeout: float) -> list[Record]:
        self._broker._answer()  # noqa: SLF001
        deadline = time.monotonic() + timeout
        with self._broker._changed:  # noqa: SLF001
            while not (found := self._next(limit)):
                left = deadline - time.monotonic()
                if left <= 0 or not self._broker._changed.wait(left):  # noqa: SLF001
                    return self._next(limit)
            return found

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions.update(
            (place, at) for place, at in positions.items() if place in self._positions
        )

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        for place, offset in positions.items():
            self._broker._committed[self._group, place] = offset  # noqa: SLF001

    def close(self) -> None:
        with self._broker._changed:  # noqa: SLF001
            members = self._broker._members[self._group]  # noqa: SLF001
            if self in members:
                members.remove(self)
