"""Members of a Kafka group that come, go and restart: nothing is lost, and nobody stalls."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from folio_events import Event, receiver
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.kafka import KafkaBroker, KafkaSubscription
from folio_events.consumer import Consumer
from folio_events.exceptions import BrokerError
from folio_events.message import Record, TopicPartition
from folio_events.models import ConsumerOffset
from folio_events.topics import wire_topic
from tests.conftest import kafka_options
from tests.contract.conftest import IMPATIENT
from tests.contract.stage import Member, Stage, message, publish, turns, values, values_by_key

pytestmark = pytest.mark.kafka

PARTITIONS = 6
#: The consumer's options for each way to share partitions out.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "cooperative": IMPATIENT,
    "eager": {**IMPATIENT, "partition.assignment.strategy": "range"},
    "KIP-848": {"group.protocol": "consumer", "topic.metadata.refresh.interval.ms": 300},
}


class WatchedMember(Member):
    """A member that knows what it has, and how that changed."""

    def __init__(
        self, broker: Broker, group: str, topics: Collection[str], journal: list[Record]
    ) -> None:
        #: What the members of the test handled, in the order of time.
        self.journal = journal
        self.changes: list[tuple[str, set[TopicPartition]]] = []
        self.held: set[TopicPartition] = set()
        super().__init__(broker, group, list(topics))
        assert isinstance(self.subscription, KafkaSubscription)
        self.subscription._revoke = self._give_up

    def step(self, timeout: float = 0.1) -> list[Record]:
        records = super().step(timeout)
        self.journal += records
        return records

    def _positions(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        if places:
            self.changes.append(("assigned", set(places)))
        self.held |= set(places)
        return super()._positions(places)

    def _give_up(self, places: Collection[TopicPartition]) -> None:
        if places:
            self.changes.append(("revoked", set(places)))
        self.held -= set(places)


@pytest.fixture
def journal() -> list[Record]:
    return []


@pytest.fixture
def join(kafka_stage: Stage, journal: list[Record]) -> Any:
    """Make members, each with a broker object of its own, as processes would."""

    def make(topic: str, **consumer: Any) -> WatchedMember:
        broker = KafkaBroker(kafka_options(consumer=consumer))
        kafka_stage.closing.callback(broker.close)
        member = WatchedMember(broker, f"{kafka_stage.prefix}-group", [topic], journal)
        kafka_stage.closing.callback(member.close)
        return member

    return make


class Sending:
    """Publishes numbers, a few for each key, over all partitions."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker, self.topic, self.sent = broker, topic, 0

    def send(self, count: int) -> None:
        numbers = range(self.sent, self.sent + count)
        publish(
            self.broker,
            [message(self.topic, b"%d" % n, key=b"k%d" % (n % 60)) for n in numbers],
        )
        self.sent += count

    def all(self) -> set[bytes]:
        return {b"%d" % number for number in range(self.sent)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_rebalance_among_traffic_loses_and_stalls_nothing(
    kafka_stage: Stage, join: Any, journal: list[Record], protocol: str
) -> None:
    """A second member comes and goes while records flow: all are handled, each key in order."""
    topic = kafka_stage.topic(PARTITIONS)
    sending = Sending(kafka_stage.broker, topic)
    sending.send(300)
    first = join(topic, **PROTOCOLS[protocol])
    turns([first], lambda: len(first.held) == PARTITIONS and first.handled)

    second = join(topic, **PROTOCOLS[protocol])

    def shared() -> bool:
        sending.send(10)
        return len(first.held) == len(second.held) == PARTITIONS // 2

    turns([first, second], shared)
    assert first.held.isdisjoint(second.held)
    sending.send(300)
    turns([first, second], lambda: set(values(journal)) == sending.all())
    assert second.handled, "the newcomer handled nothing"

    second.close()
    sending.send(300)
    turns([first], lambda: set(values(journal)) == sending.all())
    for handled in values_by_key(journal).values():
        first_times = [int(value or b"") for value in dict.fromkeys(handled)]
        assert first_times == sorted(first_times)
    assert len(first.held) == PARTITIONS


def test_by_default_a_member_keeps_what_it_need_not_give_up(kafka_stage: Stage, join: Any) -> None:
    """Cooperative: it gives up only the partitions that the newcomer gets."""
    topic = kafka_stage.topic(PARTITIONS)
    first = join(topic, **IMPATIENT)
    turns([first], lambda: len(first.held) == PARTITIONS)
    first.changes.clear()

    second = join(topic, **IMPATIENT)
    turns([first, second], lambda: len(second.held) == PARTITIONS // 2)

    assert first.changes == [("revoked", second.held)]


def test_a_static_member_that_restarts_finds_its_partitions(
    kafka_stage: Stage, join: Any, journal: list[Record]
) -> None:
    """Within the session nobody else notices: no rebalance, nothing lost."""
    topic = kafka_stage.topic(PARTITIONS)
    sending = Sending(kafka_stage.broker, topic)
    static: dict[str, Any] = {**IMPATIENT, "session.timeout.ms": 30_000}
    first = join(topic, **static, **{"group.instance.id": "first"})
    other = join(topic, **static, **{"group.instance.id": "other"})
    turns([first, other], lambda: len(first.held) == len(other.held) == PARTITIONS // 2)
    sending.send(60)
    turns([first, other], lambda: len(journal) >= 60)
    before = set(first.held)
    other.changes.clear()

    first.close()
    sending.send(60)
    again = join(topic, **static, **{"group.instance.id": "first"})
    turns([again, other], lambda: again.held)
    turns([again, other], lambda: set(values(journal)) == sending.all())

    assert again.held == before
    assert other.changes == []


@pytest.fixture
def letters(kafka_broker: Broker, only_test_receivers: None) -> str:
    """A topic with one receiver in group "letters"; returns its name on the broker."""

    @receiver("library.letter", name="tests.letters", group="letters")
    def note(event: Event) -> None: ...

    topic = wire_topic("library.letter", None)
    kafka_broker.create_topics([TopicSpec(topic, 1, 1)])
    return topic


@pytest.mark.django_db(transaction=True)
def test_a_fatal_error_of_the_client_ends_the_loop_with_the_offset_unmoved(
    letters: str, kafka_broker: Broker
) -> None:
    """Of two processes with one ``group.instance.id`` the older is done for, and says so."""
    options = kafka_options(consumer={**IMPATIENT, "group.instance.id": "the-only"})
    older, newer = KafkaBroker(options), KafkaBroker(options)
    publish(kafka_broker, [message(letters, b"no event") for _ in range(3)])
    consumer = Consumer("letters", broker=older)
    stop = threading.Event()

    def serve() -> None:
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    def offsets() -> list[int]:
        return list(ConsumerOffset.objects.values_list("offset", flat=True))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve)
        try:
            turns([], lambda: offsets() == [3])
            usurper = WatchedMember(newer, "letters", [letters], [])
            turns([usurper], running.done)
        finally:
            stop.set()
        with pytest.raises(BrokerError, match=r"group\.instance\.id") as caught:
            running.result()
    usurper.close()
    older.close()
    newer.close()

    assert not caught.value.retryable
    assert offsets() == [3]
