"""A membership in a Kafka consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from folio_events.brokers.base import Aside, PartitionState, Positions, Revoke, Subscription
from folio_events.brokers.kafka.clients import keep_after_fork, logger
from folio_events.brokers.kafka.errors import (
    NO_LEADER,
    is_fault,
    translate_consumers,
    translating,
)
from folio_events.brokers.kafka.topics import ADMIN_TIMEOUT
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.exceptions import BrokerUnavailableError
from folio_events.message import Record, TopicPartition

#: Metadata of commits, by which those of foreign tools are told apart.
OWN_COMMIT = "folio_events"


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
        self._names = {topic for topic in topics if not topic.startswith("^")}
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
        keep_after_fork(self)
        # librdkafka's own reset would pass over records of a topic that was created anew. With an
        # error instead, joining anew finds out what happened.
        reset = str(options.get("auto.offset.reset"))
        self._first = OFFSET_END if reset in ("latest", "end", "largest") else OFFSET_BEGINNING
        self._trouble = Trouble(options)
        own = {"auto.offset.reset": "error", "error_cb": self._trouble}
        self._consumer = Consumer({**options, **own}, logger=logger)
        self._consumer.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke)

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        # On its way through C an error becomes one that no "except" catches.
        try:
            yield
        except KafkaException as error:
            self._kept_error = translate_consumers(error.args[0])
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
        self._trouble.over()
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
        for committed in consumer.committed(asked, timeout=ADMIN_TIMEOUT):
            low, high = ends_of(consumer, committed)
            known = committed.offset >= 0
            states[TopicPartition(committed.topic, committed.partition)] = PartitionState(
                low=low,
                high=high,
                committed=committed.offset if known else None,
                own_commit=not known or committed.metadata == OWN_COMMIT,
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
        # The next poll raises: the batch in hand must not be left alone.
        with self._keeping_errors():
            self._stay_member()

    def _stay_member(self) -> None:
        # Again each time: a rebalance may have brought partitions that are not paused.
        self._consumer.pause(self._consumer.assignment())
        self._all_paused = True
        message: Any = self._consumer.poll(0)
        if message is None:
            return
        if message.error() is None:
            place = KafkaPartition(message.topic(), message.partition(), message.offset())
            self._consumer.seek(place)
        elif is_fault(message, self._names):
            self._fault = message.error()

    def pause(self, places: Collection[TopicPartition], seconds: float) -> None:
        self._aside.add(places, seconds)
        with translating():
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
            raise translate_consumers(fault)
        self._raise_kept()
        with translating():
            self._resume()
            first = self._consumer.poll(timeout)
            self._raise_kept()
            if first is None:
                self._raise_trouble()
                return []
            found = [first, *(self._consumer.consume(limit - 1, 0) if limit > 1 else [])]
            self._raise_kept()
        records = [record_of(message) for message in found if message.error() is None]
        faults: list[Any] = [message.error() for message in found if is_fault(message, self._names)]
        if faults and not records:
            raise translate_consumers(faults[0])
        # Beside records an error waits: librdkafka would not bring them again.
        self._fault = faults[0] if faults else None
        return records

    def _raise_trouble(self) -> None:
        # A member that has partitions lives on with what it has.
        if self._trouble.needs_a_person and not self._consumer.assignment():
            raise BrokerUnavailableError(
                self._trouble.explain("Kafka does not let the consumer in")
            )

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        # A partition that has just been handed over cannot be moved yet.
        with translating():
            assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
            for place, offset in positions.items():
                if place in assigned:
                    self._consumer.seek(KafkaPartition(place.topic, place.partition, offset))

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._committed.update(positions)
        # The database knows the truth; what is refused during a rebalance follows later.
        with translating():
            self._consumer.commit(offsets=self._offsets(), asynchronous=True)

    def _offsets(self) -> list[KafkaPartition]:
        return [
            KafkaPartition(p.topic, p.partition, offset, metadata=OWN_COMMIT)
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


def record_of(message: Any) -> Record:
    """A polled message as a record."""
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


def ends_of(consumer: Any, place: KafkaPartition) -> tuple[int, int]:
    """Where a partition's log begins and ends; waits while its leader is being elected."""
    deadline = time.monotonic() + ADMIN_TIMEOUT
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=ADMIN_TIMEOUT)
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return low, high
