"""Kafka's log and its groups' offsets, as an operator sees them: by no member of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient

from folio_events.brokers.base import PartitionState
from folio_events.brokers.kafka.clients import logger
from folio_events.brokers.kafka.errors import NO_LEADER, translate, translate_consumers, translating
from folio_events.brokers.kafka.options import Options
from folio_events.brokers.kafka.reader import NO_GROUP, OF_MEMBERS
from folio_events.brokers.kafka.subscription import OWN_COMMIT, ends_of, record_of
from folio_events.brokers.kafka.topics import ADMIN_TIMEOUT
from folio_events.exceptions import BrokerError, BrokerUnavailableError, PublishError
from folio_events.message import Record, TopicPartition

#: Most records of one batch, and most kilobytes that are fetched ahead.
_BATCH, _AHEAD = 500, 16_384
#: What Kafka answers to who sets the offsets of a group that has members.
_HAS_MEMBERS = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION)


class Log:
    """Each call makes a client of its own: operators ask seldom."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @contextmanager
    def _consumer(
        self, group: str | None = None, own: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[Any]:
        given = {
            name: value for name, value in self._options.consumer.items() if name not in OF_MEMBERS
        }
        options = {**given, "group.id": group or NO_GROUP, "auto.offset.reset": "error", **own}
        consumer = Consumer(options, logger=logger)
        try:
            with translating():
                yield consumer
        finally:
            consumer.close()

    def states(
        self,
        topics: Collection[str],
        group: str | None,
        topic_ids: Callable[[Collection[str]], Mapping[str, str]],
    ) -> dict[TopicPartition, PartitionState]:
        if not topics:
            return {}
        ids = topic_ids(topics)
        found = {}
        with self._consumer(group) as consumer:
            known = consumer.list_topics(timeout=ADMIN_TIMEOUT).topics
            asked = [
                KafkaPartition(topic, number)
                for topic in sorted(topics)
                for number in sorted(known[topic].partitions)
            ]
            answers = consumer.committed(asked, timeout=ADMIN_TIMEOUT) if group else asked
            for answer in answers:
                low, high = ends_of(consumer, answer)
                is_known = answer.offset >= 0
                found[TopicPartition(answer.topic, answer.partition)] = PartitionState(
                    low=low,
                    high=high,
                    committed=answer.offset if is_known else None,
                    own_commit=not is_known or answer.metadata == OWN_COMMIT,
                    topic_id=ids.get(answer.topic, ""),
                )
        return found

    def offsets_at(
        self, places: Collection[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        if not places:
            return {}
        found = {}
        deadline = time.monotonic() + ADMIN_TIMEOUT
        with self._consumer() as consumer:
            while missing := [place for place in sorted(places) if place not in found]:
                asked = [KafkaPartition(*place, milliseconds) for place in missing]
                for answer in consumer.offsets_for_times(asked, timeout=ADMIN_TIMEOUT):
                    place = TopicPartition(answer.topic, answer.partition)
                    if answer.error is None:
                        # Negative where all is older.
                        end = answer.offset < 0
                        found[place] = ends_of(consumer, answer)[1] if end else answer.offset
                    elif answer.error.code() not in NO_LEADER or time.monotonic() > deadline:
                        raise translate_consumers(answer.error)
                    else:
                        time.sleep(0.1)  # leaders are being elected
        return found

    def read(self, place: TopicPartition, first: int, end: int) -> Iterator[list[Record]]:
        if first >= end:
            return
        ahead = {"enable.partition.eof": True, "queued.max.messages.kbytes": _AHEAD}
        with self._consumer(own=ahead) as consumer:
            consumer.assign([KafkaPartition(*place, first)])
            while True:
                message = consumer.poll(ADMIN_TIMEOUT)
                if message is None:
                    raise BrokerUnavailableError(
                        f"Kafka brought nothing of {place.topic}/{place.partition} for "
                        f"{ADMIN_TIMEOUT:.0f} s"
                    )
                records, ended = _take([message, *consumer.consume(_BATCH - 1, 0)], end)
                if records:
                    yield records
                if ended:
                    return

    def members(self, group: str) -> list[str]:
        admin = AdminClient(self._options.common, logger=logger)
        try:
            listed = admin.list_consumer_groups(request_timeout=ADMIN_TIMEOUT).result()
            states = {listing.group_id: listing.state.name for listing in listed.valid}
            if states.get(group, "EMPTY") in ("EMPTY", "DEAD"):
                return []
            asked = admin.describe_consumer_groups([group], request_timeout=ADMIN_TIMEOUT)
            described = asked[group].result()
        except KafkaException as error:
            raise translate(error.args[0]) from error
        named = [f"{member.client_id} on {member.host}" for member in described.members]
        # Of a group of the newer protocol Kafka tells older clients that it is not empty only.
        return named or [f"somebody: the group is {states[group]}"]

    def set_offsets(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        if not positions:
            return
        offsets = [
            KafkaPartition(*place, offset, metadata=OWN_COMMIT)
            for place, offset in positions.items()
        ]
        with self._consumer(group) as consumer:
            try:
                answers = consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                raise _refusal(group, error.args[0]) from error
        for answer in answers:
            if answer.error is not None:
                raise _refusal(group, answer.error)


def _take(messages: list[Any], end: int) -> tuple[list[Record], bool]:
    """The records before an offset, and whether that was reached."""
    records: list[Record] = []
    for message in messages:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                return records, True
            raise translate_consumers(error)
        if message.offset() >= end:
            return records, True
        records.append(record_of(message))
    return records, bool(records) and records[-1].offset + 1 >= end


def _refusal(group: str, error: KafkaError) -> BrokerError:
    if error.code() in _HAS_MEMBERS:
        return PublishError(f"group {group!r} has members: {error.str()}")
    return translate_consumers(error)
