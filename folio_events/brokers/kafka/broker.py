"""The broker object: Kafka behind the port."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from django.core.checks import CheckMessage

from folio_events.brokers.base import (
    Broker,
    PartitionState,
    Positions,
    Reader,
    Report,
    Revoke,
    Subscription,
    TopicSpec,
    TopicState,
    TopicUse,
)
from folio_events.brokers.kafka.durability import warnings
from folio_events.brokers.kafka.log import Log
from folio_events.brokers.kafka.options import Options
from folio_events.brokers.kafka.producer import BatchProducer
from folio_events.brokers.kafka.reader import KafkaReader
from folio_events.brokers.kafka.subscription import KafkaSubscription
from folio_events.brokers.kafka.topics import Topics
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.exceptions import ConfigurationError
from folio_events.message import Message, Record, TopicPartition

#: What a record batch (61 bytes) and a record (20) add at most to a message, with the lengths of
#: names and values of up to 32 headers. Source: Kafka protocol, RecordBatch v2.
_FRAMING = 61 + 20 + 32 * 4


class KafkaBroker(Broker):
    """Apache Kafka.

    Options:
        librdkafka's own, for producer, consumer and admin client alike; the members
        ``producer`` and ``consumer`` are dicts of options for the one alone.
    """

    requires_topics = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._options = Options(options)
        faults = self.check()
        if faults:
            listed = " ".join(f"{fault.msg} {fault.hint}" for fault in faults)
            raise ConfigurationError(listed, faults=faults)
        trouble = Trouble(self._options.common)
        self._topics = Topics(self._options.common, trouble)
        self._log = Log(self._options)
        self._producer = BatchProducer(
            self._options.producer,
            trouble,
            grows="message.max.bytes" not in options.get("producer", {}),
        )

    def check(self) -> list[CheckMessage]:
        return self._options.check()

    def missing_topics(self, names: Collection[str]) -> set[str]:
        return self._topics.missing(names)

    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        return self._topics.create(specs)

    def ping(self, *, timeout: float) -> None:
        self._topics.ping(timeout)

    def list_topics(self, prefix: str) -> set[str]:
        return self._topics.names(prefix)

    def describe_topics(self, names: Collection[str]) -> dict[str, TopicState]:
        return self._topics.describe(names)

    def grow_topics(self, partitions: Mapping[str, int]) -> None:
        self._topics.grow(partitions)

    def configure_topics(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        self._topics.configure(configs)

    def delete_topics(self, names: Collection[str]) -> set[str]:
        deleted = self._topics.delete(names)
        self.known_topics -= deleted
        return deleted

    def describe_use(self, names: Collection[str]) -> dict[str, TopicUse]:
        return self._topics.use(names)

    def check_topics(self, names: Collection[str]) -> list[CheckMessage]:
        return warnings(self._topics.durability(names))

    def forget_topics(self) -> None:
        super().forget_topics()
        self._topics.forget_limits()

    def max_message_bytes(self, topic: str) -> int | None:
        limit = self._topics.limit(topic)
        # A compressed batch may fit although its messages are larger.
        compressed = self._options.producer.get("compression.type", "none") != "none"
        return None if limit is None or compressed else limit - _FRAMING

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        deadline = time.monotonic() + timeout
        for topic in {message.topic for message in messages}:
            limit = self._topics.limit(topic, deadline - time.monotonic())
            if limit is not None:
                self._producer.fit(limit)
        return self._producer.publish(messages, deadline=deadline)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke = lambda _places: None,
    ) -> Subscription:
        options = {**self._options.consumer, "group.id": group}
        return KafkaSubscription(options, topics, positions, revoke, self._topics.ids)

    def read(
        self,
        topics: Sequence[str],
        *,
        latest: bool,
        known: Mapping[TopicPartition, int] = MappingProxyType({}),
    ) -> Reader:
        return KafkaReader(self._options.consumer, topics, latest=latest, known=known)

    def partition_states(
        self, topics: Collection[str], group: str | None = None
    ) -> dict[TopicPartition, PartitionState]:
        return self._log.states(set(topics) - self.missing_topics(topics), group, self._topics.ids)

    def offsets_at(
        self, places: Collection[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        return self._log.offsets_at(places, milliseconds)

    def read_range(self, place: TopicPartition, first: int, end: int) -> Iterator[list[Record]]:
        return self._log.read(place, first, end)

    def group_members(self, group: str) -> list[str]:
        return self._log.members(group)

    def set_group_offsets(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        self._log.set_offsets(group, positions)

    def close(self) -> None:
        self._producer.discard()
        self._topics.close()
