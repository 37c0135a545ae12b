"""Reading Kafka without a group: topics and partitions are found, and kept count of, here."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from folio_events.brokers.base import Reader
from folio_events.brokers.kafka.clients import keep_after_fork, logger
from folio_events.brokers.kafka.errors import (
    GONE,
    NO_LEADER,
    NO_TOPIC,
    translate_consumers,
    translating,
)
from folio_events.brokers.kafka.subscription import record_of
from folio_events.brokers.kafka.topics import ADMIN_TIMEOUT
from folio_events.brokers.kafka.trouble import Trouble
from folio_events.exceptions import BrokerError, BrokerUnavailableError
from folio_events.message import Record, TopicPartition

#: Of a group that is never joined: librdkafka wants a name.
NO_GROUP = "folio_events-reader"
#: Options of members of a group, which a reader is not.
OF_MEMBERS = ("group.protocol", "group.remote.assignor", "group.instance.id")
#: As a timestamp that is asked for, the end of the log. Source: Kafka protocol, ListOffsets.
_END = -1


class KafkaReader(Reader):
    """A consumer that is assigned all partitions by itself.

    Args:
        options: Of a consumer.
        topics: Names, and patterns that begin with ``^``.
        latest: Whether partitions that are there already are read from their end.
        known: Partitions to be read on from these offsets instead.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        topics: Sequence[str],
        *,
        latest: bool,
        known: Mapping[TopicPartition, int],
    ) -> None:
        self._names = {topic for topic in topics if not topic.startswith("^")}
        self._patterns = [re.compile(topic) for topic in topics if topic.startswith("^")]
        self._interval = float(options["topic.metadata.refresh.interval.ms"]) / 1000
        self.positions: dict[TopicPartition, int] = {}
        self._trouble = Trouble(options)
        keep_after_fork(self)
        given = {name: value for name, value in options.items() if name not in OF_MEMBERS}
        own = {
            "group.id": NO_GROUP,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "error_cb": self._trouble,
        }
        self._consumer = Consumer({**given, **own}, logger=logger)
        try:
            there = self._find()
            #: Where the partitions ended that were there when reading began.
            self._ends = self._ask_ends(there)
            starts = self._ends if latest else {}
            self._add({place: {**starts, **known}.get(place, 0) for place in there})
        except BrokerError:
            self._consumer.close()
            raise

    def _find(self) -> set[TopicPartition]:
        """All partitions of all topics that are to be read."""
        self._refresh_at = time.monotonic() + self._interval
        try:
            known = self._consumer.list_topics(timeout=ADMIN_TIMEOUT).topics
        except KafkaException as error:
            if error.args[0].code() not in GONE:
                raise translate_consumers(error.args[0]) from error
            self._consumer.poll(0)  # has it tell what happened
            said = self._trouble.explain("Kafka does not answer")
            raise BrokerUnavailableError(said) from error
        self._trouble.over()
        return {
            TopicPartition(name, number)
            for name, topic in known.items()
            if name in self._names or any(pattern.search(name) for pattern in self._patterns)
            for number in topic.partitions
        }

    def _ask_ends(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if not places:
            return {}
        asked = [KafkaPartition(*place, _END) for place in sorted(places)]
        deadline = time.monotonic() + ADMIN_TIMEOUT
        while True:
            try:
                answers = self._consumer.offsets_for_times(asked, timeout=ADMIN_TIMEOUT)
                faults = [answer.error for answer in answers if answer.error is not None]
            except KafkaException as error:
                faults = [error.args[0]]
            if not faults:
                return {TopicPartition(a.topic, a.partition): a.offset for a in answers}
            for fault in faults:
                if fault.code() not in NO_LEADER or time.monotonic() > deadline:
                    raise translate_consumers(fault)
            time.sleep(0.1)  # leaders are being elected

    def _add(self, starts: Mapping[TopicPartition, int]) -> None:
        if starts:
            self.positions.update(starts)
            with translating():
                self._consumer.incremental_assign(
                    [KafkaPartition(*place, at or OFFSET_BEGINNING) for place, at in starts.items()]
                )

    def _refresh(self) -> None:
        try:
            found = self._find()
        except BrokerUnavailableError as error:
            logger.info("topics were not looked for: %s", error)
            return
        self._add({place: 0 for place in found if place not in self.positions})
        gone = [place for place in self.positions if place not in found]
        if gone:
            with translating():
                self._consumer.incremental_unassign([KafkaPartition(*place) for place in gone])
            for place in gone:
                self.positions.pop(place)
                self._ends.pop(place, None)

    def poll(self, limit: int, timeout: float) -> list[Record]:
        deadline = time.monotonic() + timeout
        while True:
            if time.monotonic() >= self._refresh_at:
                self._refresh()
            until = min(deadline, self._refresh_at)
            with translating():
                first = self._consumer.poll(max(until - time.monotonic(), 0))
                found = [] if first is None else [first, *self._consumer.consume(limit - 1, 0)]
            records = self._take(found)
            if records or time.monotonic() >= deadline:
                return records

    def _take(self, messages: Sequence[Any]) -> list[Record]:
        records = []
        for message in messages:
            error = message.error()
            place = TopicPartition(message.topic(), message.partition())
            if error is None:
                records.append(record_of(message))
                self.positions[place] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                # Behind the last record there may be offsets whose records are gone.
                if place in self.positions:
                    self.positions[place] = max(self.positions[place], message.offset())
            elif error.code() not in NO_TOPIC:
                # One that was deleted leaves with the next look for topics.
                raise translate_consumers(error)
        return records

    def caught_up(self) -> bool:
        return all(self.positions[place] >= end for place, end in self._ends.items())

    def close(self) -> None:
        self._consumer.close()
