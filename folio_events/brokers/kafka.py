"""The Kafka broker, by confluent-kafka (librdkafka)."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
)
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from django.core.checks import CheckMessage, Error

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
_silent = logging.getLogger("folio_events.kafka.check")
_silent.disabled = True

#: What holds clients in this process.
_owners: weakref.WeakSet[object] = weakref.WeakSet()


def _leave_to_parent() -> None:
    # To destroy a client in a forked child would wait for threads that did not come along,
    # even when the child exits: what the parent has is kept there for ever.
    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(after_in_child=_leave_to_parent)

#: Seconds for one call of the admin client.
_ADMIN_TIMEOUT = 15.0
#: Seconds for which the limits of a topic are believed.
_LIMITS_LIFETIME = 300.0
#: librdkafka's own default for the largest message and the largest batch.
_DEFAULT_BYTES = 1_000_000
#: What a record batch and a record add to a message. Source: Kafka protocol, RecordBatch v2.
_FRAMING = 61 + 21

#: Metadata of commits, by which those of foreign tools are told apart.
_OWN_COMMIT = "folio_events"

_PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    # Java's: FOLIO's producers and ours put a key on the same partition.
    "partitioner": "murmur2_random",
    # The relay has its own deadline; librdkafka must not give up in the midst of a key.
    "message.timeout.ms": 0,
    # A topic that was deleted shows within the relay's deadline.
    "topic.metadata.propagation.max.ms": 5_000,
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
#: What messages get that were still under way when their producer was given up.
_PURGED = (
    KafkaError._PURGE_QUEUE,  # noqa: SLF001
    KafkaError._PURGE_INFLIGHT,  # noqa: SLF001
)


def _translate(error: KafkaError, about: str = "") -> BrokerError:
    text = f"{about}{error.name()}: {error.str()}"
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
            listed = " ".join(f"{fault.msg} {fault.hint}" for fault in faults)
            raise ConfigurationError(listed, faults=faults)
        _owners.add(self)
        self._producer: Producer | None = None
        #: Whether the producer met a fatal error: it will not send any more.
        self._broken = False
        self._admin_client: AdminClient | None = None
        #: By topic: until when the limit is believed, and the limit.
        self._limits: dict[str, tuple[float, int | None]] = {}
        self._unreachable_until = 0.0
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
        if not found and (refusal := self._refusal()):
            error(
                f"librdkafka refuses the options of the Kafka broker: {refusal}.",
                "The names and values are those of librdkafka's CONFIGURATION.md.",
                24,
            )
        return found

    def _refusal(self) -> str:
        """Why no client can be made with the options, if so."""
        try:
            # Without a server to connect to, a client is made and gone in a millisecond.
            for make, options in (
                (Producer, self._producer_options),
                (Consumer, {**self._consumer_options, "group.id": "check"}),
                (AdminClient, self._common),
            ):
                make({**options, "bootstrap.servers": ""}, logger=_silent)
        except KafkaException as error:
            return str(error.args[0].str())
        except (TypeError, ValueError) as error:
            return str(error)
        return ""

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
        self._await_topics(created)
        return created

    def _await_topics(self, names: set[str]) -> None:
        # A topic is created before every broker has heard of it.
        pause = threading.Event()
        until = time.monotonic() + _ADMIN_TIMEOUT
        while names and self.missing_topics(names) and time.monotonic() < until:
            pause.wait(0.05)

    def forget_topics(self) -> None:
        super().forget_topics()
        self._limits.clear()

    def max_message_bytes(self, topic: str) -> int | None:
        return self._limit(topic, _ADMIN_TIMEOUT)

    def _limit(self, topic: str, timeout: float) -> int | None:
        until, limit = self._limits.get(topic, (0.0, None))
        now = time.monotonic()
        # While Kafka is away, one topic's wait is enough.
        if until > now or self._unreachable_until > now:
            return limit
        try:
            limit = self._read_limit(topic, max(timeout, 0.1))
        except BrokerUnavailableError:
            self._unreachable_until = time.monotonic() + _ADMIN_TIMEOUT
        except MissingTopicError:
            limit = None  # asked for again: it may have been created a moment ago
        else:
            self._limits[topic] = (time.monotonic() + _LIMITS_LIFETIME, limit)
        return limit

    def _read_limit(self, topic: str, timeout: float) -> int | None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            future = self._admin.describe_configs([resource], request_timeout=timeout)[resource]
            limit = int(future.result()["max.message.bytes"].value)
        except (KafkaException, KeyError, TypeError, ValueError) as error:
            if isinstance(error, KafkaException) and error.args[0].code() in (*_GONE, *_NO_TOPIC):
                raise _translate(error.args[0]) from error
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
            self._broken = False
        return self._producer

    def _discard_producer(self) -> None:
        """Give up what is under way; the next message gets a new producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            self._flush(producer, time.monotonic() + 1.0)

    def publish(self, messages: Sequence[Message], *, timeout: float) -> list[Report]:
        deadline = time.monotonic() + timeout
        for topic in {message.topic for message in messages}:
            self._limit(topic, deadline - time.monotonic())
        producer = self._get_producer()
        reports: list[Report | None] = [None] * len(messages)
        answers: list[Any] = [None] * len(messages)

        def note(index: int, error: KafkaError | None, message: Any) -> None:
            # Looked at later: while a fatal error is being raised, every call into C fails.
            answers[index] = message if error is None else error

        refused: set[tuple[str, bytes | None]] = set()
        for index, message in enumerate(messages):
            if refused and (message.topic, message.key) in refused:
                reports[index] = PublishError("an earlier message of its key was refused")
                continue
            report = self._enqueue(producer, message, partial(note, index), deadline)
            if report is not None:
                reports[index] = report
                if message.key is not None:
                    refused.add((message.topic, message.key))
        remaining = self._flush(producer, deadline)
        if remaining or any(isinstance(answer, KafkaError) for answer in answers):
            # It may have stopped before a gap; what it still has must not come later.
            self._discard_producer()
        unanswered = BrokerUnavailableError(f"Kafka did not acknowledge within {timeout:.0f} s")
        return [
            report or _report(answer, message.topic) or unanswered
            for report, answer, message in zip(reports, answers, messages, strict=True)
        ]

    def _flush(self, producer: Producer, deadline: float) -> int:
        """Wait for the answers; returns how many are missing."""
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            # What a broken producer has not sent, or wants to send again, it never will.
            if self._broken:
                producer.purge(in_queue=True, in_flight=False)
            # In short waits: flush() raises an error when it returns, not when it happens.
            missing = self._serve(producer.flush, min(left, 0.1))
            if not missing or not left:
                return missing

    def _serve(self, call: Callable[[float], int], seconds: float) -> int:
        try:
            return call(seconds)
        except (KafkaException, SystemError):
            # So, and once, librdkafka tells that the producer met a fatal error.
            self._broken = True
            return 1

    def _enqueue(
        self, producer: Producer, message: Message, on_delivery: Any, deadline: float
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
                self._serve(producer.poll, 0.05)
            except KafkaException as error:
                return _translate(error.args[0])
            else:
                return None

    # Consuming

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke = lambda _places: None,
    ) -> Subscription:
        options = {**self._consumer_options, "group.id": group}
        return KafkaSubscription(options, topics, positions, revoke, self._topic_ids)

    def _topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The ids that Kafka gave these topics; without those it does not tell."""
        futures = self._admin.describe_topics(
            TopicCollection(list(topics)), request_timeout=_ADMIN_TIMEOUT
        )
        found: dict[str, str] = {}
        for topic, future in futures.items():
            try:
                found[topic] = str(future.result().topic_id)
            except KafkaException as error:
                if error.args[0].code() in _GONE:
                    raise _translate(error.args[0]) from error
                logger.warning("Kafka does not describe topic %s: %s", topic, error.args[0].str())
        return found

    def close(self) -> None:
        self._discard_producer()
        self._admin_client = None


def _is_true(value: object) -> bool:
    # As librdkafka reads it.
    return str(value).lower() in ("true", "t", "1")


def _is_fault(message: Any) -> bool:
    """Whether a polled message stands for an error that ends the subscription."""
    error = message.error()
    if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
        return False
    # A pattern that no topic matches yet may find one with the next refresh.
    return not (error.code() in _NO_TOPIC and "^" in (message.topic() or error.str()))


def _report(answer: Any, topic: str) -> Report | None:
    if isinstance(answer, KafkaError):
        return None if answer.code() in _PURGED else _translate(answer, f"topic {topic}: ")
    return None if answer is None else Acknowledgement(answer.partition(), answer.offset())


class KafkaSubscription(Subscription):
    """A member of a Kafka consumer group."""

    def __init__(
        self,
        options: dict[str, Any],
        topics: Sequence[str],
        positions: Positions,
        revoke: Revoke,
        topic_ids: Callable[[Collection[str]], Mapping[str, str]],
    ) -> None:
        strategy = str(options.get("partition.assignment.strategy", ""))
        self._incremental = "cooperative" in strategy or options.get("group.protocol") == "consumer"
        self._positions = positions
        self._revoke = revoke
        self._topic_ids = topic_ids
        self._committed: dict[TopicPartition, int] = {}
        self._fault: KafkaError | None = None
        #: Not to be read at all, or not now.
        self._stopped: set[TopicPartition] = set()
        self._aside = Aside()
        self._all_paused = False
        #: What a callback raised; the next poll raises it.
        self._kept_error: Exception | None = None
        _owners.add(self)
        # librdkafka's own reset would pass over records of a topic that was created anew. With an
        # error instead, joining anew finds out what happened.
        reset = str(options.get("auto.offset.reset"))
        self._first = OFFSET_END if reset in ("latest", "end", "largest") else OFFSET_BEGINNING
        self._consumer = Consumer({**options, "auto.offset.reset": "error"}, logger=logger)
        self._consumer.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke)

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        # On its way through C an error becomes one that no "except" catches.
        try:
            yield
        except KafkaException as error:
            self._kept_error = _translate(error.args[0])
        except Exception as error:  # noqa: BLE001 - poll() raises it
            self._kept_error = error

    def _raise_kept(self) -> None:
        error, self._kept_error = self._kept_error, None
        if error is not None:
            raise error

    def _on_assign(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        with self._keeping_errors():
            self._take_over(consumer, partitions)

    def _take_over(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        states = self._states(consumer, partitions)
        started = self._positions(states)
        stopped = []
        for partition in partitions:
            place = TopicPartition(partition.topic, partition.partition)
            committed = states[place].committed
            offset = started.get(place, self._first if committed is None else committed)
            if offset is None:
                stopped.append(partition)
                self._stopped.add(place)
            # Also a partition that is not read needs an offset that exists.
            partition.offset = states[place].high if offset is None else offset
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        if stopped:
            consumer.pause(stopped)
        logger.info("assigned: %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))

    def _states(
        self, consumer: Any, partitions: list[KafkaPartition]
    ) -> dict[TopicPartition, PartitionState]:
        if not partitions:
            return {}
        ids = self._topic_ids({partition.topic for partition in partitions})
        asked = [KafkaPartition(p.topic, p.partition) for p in partitions]
        states = {}
        for committed in consumer.committed(asked, timeout=_ADMIN_TIMEOUT):
            low, high = consumer.get_watermark_offsets(committed, timeout=_ADMIN_TIMEOUT)
            known = committed.offset >= 0
            states[TopicPartition(committed.topic, committed.partition)] = PartitionState(
                low=low,
                high=high,
                committed=committed.offset if known else None,
                own_commit=not known or committed.metadata == _OWN_COMMIT,
                topic_id=ids.get(committed.topic, ""),
            )
        return states

    def _on_revoke(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        with self._keeping_errors():
            self._give_up(consumer, partitions)

    def _give_up(self, consumer: Any, partitions: list[KafkaPartition]) -> None:
        places = [TopicPartition(p.topic, p.partition) for p in partitions]
        self._revoke(places)
        for place in places:
            self._committed.pop(place, None)
            self._stopped.discard(place)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()
        logger.info("revoked: %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions))

    def keep_alive(self) -> None:
        # Again each time: a rebalance may have brought partitions that are not paused.
        self._consumer.pause(self._consumer.assignment())
        self._all_paused = True
        message: Any = self._consumer.poll(0)
        if message is None:
            return
        if message.error() is None:
            place = KafkaPartition(message.topic(), message.partition(), message.offset())
            self._consumer.seek(place)
        elif _is_fault(message):
            self._fault = message.error()

    def pause(self, places: Collection[TopicPartition], seconds: float) -> None:
        self._aside.add(places, seconds)
        assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
        self._consumer.pause([KafkaPartition(*place) for place in places if place in assigned])

    def _resume(self) -> None:
        due = set(self._aside.take_due())
        if self._all_paused or due:
            self._consumer.resume(
                [
                    partition
                    for partition in self._consumer.assignment()
                    if (place := TopicPartition(partition.topic, partition.partition))
                    not in self._stopped
                    and place not in self._aside
                    and (self._all_paused or place in due)
                ]
            )
            self._all_paused = False

    def poll(self, limit: int, timeout: float) -> list[Record]:
        # consume(n, timeout) would wait the whole timeout unless n messages came.
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise _translate(fault)
        self._raise_kept()
        self._resume()
        first = self._consumer.poll(timeout)
        self._raise_kept()
        if first is None:
            return []
        found = [first, *(self._consumer.consume(limit - 1, 0) if limit > 1 else [])]
        self._raise_kept()
        records = [self._record(message) for message in found if message.error() is None]
        faults: list[Any] = [message.error() for message in found if _is_fault(message)]
        if faults and not records:
            raise _translate(faults[0])
        # Beside records an error waits: librdkafka would not bring them again.
        self._fault = faults[0] if faults else None
        return records

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
                self._seek(KafkaPartition(place.topic, place.partition, offset))

    def _seek(self, place: KafkaPartition) -> None:
        try:
            self._consumer.seek(place)
        except KafkaException as error:
            # A partition that has just been handed over cannot be moved yet.
            raise _translate(error.args[0]) from error

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._committed.update(positions)
        # The database knows the truth; what is refused during a rebalance follows later.
        self._consumer.commit(offsets=self._offsets(), asynchronous=True)

    def _offsets(self) -> list[KafkaPartition]:
        return [
            KafkaPartition(p.topic, p.partition, offset, metadata=_OWN_COMMIT)
            for p, offset in self._committed.items()
        ]

    def close(self) -> None:
        try:
            if self._committed:
                self._consumer.commit(offsets=self._offsets(), asynchronous=False)
        except KafkaException as error:
            logger.warning("the last offsets were not committed to Kafka: %s", error.args[0].str())
        finally:
            self._consumer.close()
