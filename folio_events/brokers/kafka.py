"""The Kafka broker, by confluent-kafka (librdkafka)."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]  # re-exported without __all__
from django.core.checks import CheckMessage, Error

from folio_events.brokers.base import (
    Acknowledgement,
    Broker,
    Positions,
    Report,
    Subscription,
    TopicSpec,
)
from folio_events.exceptions import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    MessageTooLargeError,
    MissingTopicError,
    PublishError,
)
from folio_events.message import Message, Record, TopicPartition

logger = logging.getLogger("folio_events.kafka")

#: Seconds for one call of the admin client.
_ADMIN_TIMEOUT = 15.0
#: Seconds for which the limits of a topic are believed.
_LIMITS_LIFETIME = 300.0
#: librdkafka's own default for the largest message and the largest batch.
_DEFAULT_BYTES = 1_000_000
#: What a record batch and a record add to a message. Source: Kafka protocol, RecordBatch v2.
_FRAMING = 61 + 21

_PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    # Java's: FOLIO's producers and ours put a key on the same partition.
    "partitioner": "murmur2_random",
    # The relay has its own deadline; librdkafka must not give up in the midst of a key.
    "message.timeout.ms": 0,
    # Stop before a refused record instead of sending the later ones of its key.
    "enable.gapless.guarantee": True,
    "linger.ms": 5,
    "queue.buffering.max.messages": 100_000,
}
_CONSUMER = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "partition.assignment.strategy": "cooperative-sticky",
    # As FOLIO's wrapper has them.
    "topic.metadata.refresh.interval.ms": 30_000,
    "max.poll.interval.ms": 600_000,
    "session.timeout.ms": 45_000,
}
#: Refused by librdkafka when the group protocol is "consumer" (KIP-848).
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")

_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_NO_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - confluent-kafka's spelling of local errors
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
)
_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.POLICY_VIOLATION,
)
_GONE = (
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
)


def _translate(error: KafkaError) -> BrokerError:
    text = f"{error.name()}: {error.str()}"
    code = error.code()
    if code in _TOO_LARGE:
        return MessageTooLargeError(text)
    if code in _NO_TOPIC:
        return MissingTopicError(text)
    if code in _GONE:
        return BrokerUnavailableError(text)
    return PublishError(text, retryable=code not in _REFUSED)


class KafkaBroker(Broker):
    """Apache Kafka.

    Options:
        librdkafka's own, for producer, consumer and admin client alike; the members
        ``producer`` and ``consumer`` are dicts of options for the one alone.
    """

    requires_topics = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        common = {
            name: value for name, value in options.items() if name not in ("producer", "consumer")
        }
        self._common = {**common, "client.id": common.get("client.id", "folio_events")}
        self._producer_options = {**_PRODUCER, **self._common, **options.get("producer", {})}
        self._consumer_options = {**_CONSUMER, **self._common, **options.get("consumer", {})}
        if self._consumer_options.get("group.protocol") == "consumer":
            given = {**common, **options.get("consumer", {})}
            for name in _CLASSIC_ONLY:
                if name not in given:
                    self._consumer_options.pop(name, None)
        faults = self.check()
        if faults:
            raise ConfigurationError(" ".join(f"{fault.msg} {fault.hint}" for fault in faults))
        self._producer: Producer | None = None
        self._admin_client: AdminClient | None = None
        self._limits: dict[str, tuple[float, int | None]] = {}
        self._max_bytes = int(self._producer_options.get("message.max.bytes", _DEFAULT_BYTES))
        self._batch_bytes = int(self._producer_options.get("batch.size", _DEFAULT_BYTES))

    def check(self) -> list[CheckMessage]:
        found: list[CheckMessage] = []

        def error(message: str, hint: str, number: int) -> None:
            found.append(Error(message, hint=hint, id=f"folio_events.E{number:03}"))

        if not self._common.get("bootstrap.servers") and not self._common.get(
            "metadata.broker.list"
        ):
            error(
                "The Kafka broker has no 'bootstrap.servers'.",
                "Put it into FOLIO_EVENTS['BROKER']['OPTIONS'], or set KAFKA_HOST and use settings_from_env().",
                20,
            )
        for name in ("enable.auto.commit", "enable.auto.offset.store"):
            if _is_true(self._consumer_options[name]):
                error(
                    f"The Kafka option {name!r} is on.",
                    "Remove it: offsets are committed after the receivers' transaction, or events get lost.",
                    21,
                )
        if str(self._producer_options["acks"]) not in ("all", "-1"):
            error(
                "The Kafka option 'acks' is not 'all'.",
                "Remove it, or acknowledged events can get lost.",
                22,
            )
        if not _is_true(self._producer_options["enable.idempotence"]):
            error(
                "The Kafka option 'enable.idempotence' is off.",
                "Remove it, or a retry can double events and change their order.",
                23,
            )
        return found

    # Topics

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient(dict(self._common), logger=logger)
        return self._admin_client

    def missing_topics(self, names: Collection[str]) -> set[str]:
        try:
            known = self._admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        except KafkaException as error:
            raise BrokerUnavailableError(
                f"Kafka does not answer: {error.args[0].str()}."
            ) from error
        return set(names) - set(known)

    def create_topics(self, specs: Iterable[TopicSpec]) -> set[str]:
        new = [
            NewTopic(spec.name, num_partitions=spec.partitions, replication_factor=spec.replication)
            for spec in specs
        ]
        created: set[str] = set()
        if not new:
            return created
        for name, future in self._admin.create_topics(new, request_timeout=_ADMIN_TIMEOUT).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise _translate(error.args[0]) from error
            else:
                created.add(name)
        return created

    def max_message_bytes(self, topic: str) -> int | None:
        known = self._limits.get(topic)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        limit = self._read_limit(topic)
        self._limits[topic] = (time.monotonic() + _LIMITS_LIFETIME, limit)
        return limit

    def _read_limit(self, topic: str) -> int | None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            future = self._admin.describe_configs([resource], request_timeout=_ADMIN_TIMEOUT)[
                resource
            ]
            limit = int(future.result()["max.message.bytes"].value)
        except (KafkaException, KeyError, TypeError, ValueError) as error:
            # Describing needs a right of its own; without it the broker's refusal decides.
            logger.warning("Kafka does not tell the limit of topic %s: %s", topic, error)
            return None
        self._fit_producer(limit)
        # A compressed batch may fit although its messages are larger.
        compressed = self._producer_options.get("compression.type", "none") != "none"
        return None if compressed else limit - _FRAMING

    def _fit_producer(self, limit: int) -> None:
        # A batch above a topic's limit is refused whole, small messages with it.
        if limit < self._batch_bytes:
            self._batch_bytes = limit
            self._discard_producer()
        if limit > self._max_bytes and "message.max.bytes" not in self.options.get("producer", {}):
            self._max_bytes = limit
            self._discard_producer()

    # Publishing

    def _get_producer(self) -> Producer:
        if self._producer is None:
            options = {
                **self._producer_options,
                "message.max.bytes": self._max_bytes,
                "batch.size": self._batch_bytes,
            }
            self._producer = Producer(options, logger=logger)
        return self._producer

    def _discard_producer(self) -> None:
        """Give up what is under way; the next message gets a new producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.flush(1.0)

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        for topic in {message.topic for message in messages}:
            self.max_message_bytes(topic)
        producer = self._get_producer()
        deadline = time.monotonic() + timeout
        reports: list[Report | None] = [None] * len(messages)
        failed = False

        def acknowledge(index: int, error: KafkaError | None, message: Any) -> None:
            nonlocal failed
            if error is None:
                reports[index] = Acknowledgement(message.partition(), message.offset())
            else:
                reports[index], failed = _translate(error), True

        refused: set[tuple[str, bytes]] = set()
        for index, message in enumerate(messages):
            if message.key is not None and (message.topic, message.key) in refused:
                reports[index] = PublishError("an earlier message of its key was refused")
                continue
            report = self._enqueue(producer, message, partial(acknowledge, index), deadline)
            if report is not None:
                reports[index] = report
                if message.key is not None:
                    refused.add((message.topic, message.key))
        remaining = producer.flush(max(deadline - time.monotonic(), 0.0))
        if remaining or failed:
            # It may have stopped before a gap; what it still has must not come later.
            self._discard_producer()
        unanswered = BrokerUnavailableError(f"Kafka did not acknowledge within {timeout:.0f} s")
        return [unanswered if report is None else report for report in reports]

    @staticmethod
    def _enqueue(
        producer: Producer, message: Message, on_delivery: Any, deadline: float
    ) -> Report | None:
        while True:
            try:
                producer.produce(
                    message.topic,
                    value=message.value,
                    key=message.key,
                    headers=list(message.headers),
                    on_delivery=on_delivery,
                )
            except BufferError:
                if time.monotonic() > deadline:
                    return BrokerUnavailableError("the producer's queue stayed full")
                producer.poll(0.05)
            except KafkaException as error:
                return _translate(error.args[0])
            else:
                producer.poll(0)
                return None

    # Consuming

    def subscribe(self, group: str, topics: Sequence[str], positions: Positions) -> Subscription:
        return KafkaSubscription({**self._consumer_options, "group.id": group}, topics, positions)

    def close(self) -> None:
        self._discard_producer()
        self._admin_client = None


def _is_true(value: object) -> bool:
    return str(value).lower() == "true"


class KafkaSubscription(Subscription):
    """A member of a Kafka consumer group."""

    def __init__(
        self, options: dict[str, Any], topics: Sequence[str], positions: Positions
    ) -> None:
        strategy = str(options.get("partition.assignment.strategy", ""))
        self._incremental = "cooperative" in strategy or options.get("group.protocol") == "consumer"
        self._positions = positions
        self._committed: dict[TopicPartition, int] = {}
        self._consumer = Consumer(options, logger=logger)
        self._consumer.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke)

    def _on_assign(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        started = self._positions([TopicPartition(p.topic, p.partition) for p in partitions])
        for partition in partitions:
            place = TopicPartition(partition.topic, partition.partition)
            if place in started:
                partition.offset = started[place]
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        logger.info("assigned: %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))

    def _on_revoke(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        for partition in partitions:
            self._committed.pop(TopicPartition(partition.topic, partition.partition), None)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()
        logger.info("revoked: %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))

    def poll(self, limit: int, timeout: float) -> list[Record]:
        # consume(n, timeout) would wait the whole timeout unless n messages came.
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        found = [first, *(self._consumer.consume(limit - 1, 0) if limit > 1 else [])]
        return [self._record(message) for message in found if self._is_record(message)]

    @staticmethod
    def _is_record(message: Any) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
            return False
        raise _translate(error)

    @staticmethod
    def _record(message: Any) -> Record:
        _kind, timestamp = message.timestamp()
        return Record(
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            key=message.key(),
            value=message.value(),
            headers=message.headers() or [],
            timestamp=timestamp,
        )

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
        for place, offset in positions.items():
            if place in assigned:
                self._consumer.seek(KafkaPartition(place.topic, place.partition, offset))

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._committed.update(positions)
        # The database knows the truth; what is refused during a rebalance follows later.
        self._consumer.commit(offsets=self._offsets(), asynchronous=True)

    def _offsets(self) -> list[KafkaPartition]:
        return [
            KafkaPartition(p.topic, p.partition, offset) for p, offset in self._committed.items()
        ]

    def close(self) -> None:
        try:
            if self._committed:
                self._consumer.commit(offsets=self._offsets(), asynchronous=False)
        except KafkaException as error:
            logger.warning("the last offsets were not committed to Kafka: %s", error.args[0].str())
        finally:
            self._consumer.close()
