"""Replays and resets on a real Kafka: its log, its groups, its members."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer as ForeignTool
from confluent_kafka import TopicPartition as KafkaPartition
from django.db import connections
from django.utils import timezone

from folio_events import Event, publish, receiver
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.conf import get_settings
from folio_events.consumer import Consumer
from folio_events.exceptions import InvalidStateError
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, OutboxMessage
from folio_events.operations.criteria import Criteria
from folio_events.operations.offsets import Target, reset_offsets
from folio_events.operations.replay import replay_events
from folio_events.redelivery import retry_due
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.conftest import kafka_options
from tests.testapp.models import Effect

pytestmark = [pytest.mark.kafka, pytest.mark.django_db(transaction=True)]
TOPIC = "library.letter"


@pytest.fixture
def group(kafka_broker: Broker, only_test_receivers: None) -> str:
    """Two receivers of one group, and a topic of three partitions."""
    for name in ("one", "other"):

        def note(event: Event, name: str = name) -> None:
            number = event.payload["number"]
            Effect.objects.create(
                receiver=name, event_id=event.id, key=event.key or "", note=str(number)
            )

        receiver(TOPIC, name=name)(note)
    kafka_broker.create_topics([TopicSpec(wire_topic(TOPIC, None), 3, 1)])
    return get_settings().GROUP


def write(numbers: range, broker: Broker) -> None:
    for number in numbers:
        publish(TOPIC, key=str(number % 7), payload={"number": number})
    drained = 0
    while drained < len(numbers):
        drained += drain(broker=broker).published


def effects(name: str) -> list[int]:
    notes = Effect.objects.filter(receiver=name).order_by("id")
    return [int(note) for note in notes.values_list("note", flat=True)]


def consume(group: str, broker: Broker, until: Callable[[], bool]) -> None:
    consumer = Consumer(group, broker=broker)
    deadline = time.monotonic() + 60
    try:
        while not until():
            assert time.monotonic() < deadline
            consumer.step(timeout=0.2)
    finally:
        consumer.close()
    while broker.group_members(group):
        assert time.monotonic() < deadline


@contextmanager
def running(group: str, broker: Broker) -> Iterator[None]:
    """A consumer in a thread of its own."""
    stop = threading.Event()

    def serve() -> None:
        consumer = Consumer(group, broker=broker)
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def test_a_window_is_replayed_to_one_receiver(group: str, kafka_broker: Broker) -> None:
    """Its effects are made once more, in the order of keys; group and other receivers rest."""
    write(range(20), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 20)
    moment = timezone.now()
    write(range(20, 60), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 60)
    topic = wire_topic(TOPIC, None)
    rows = list(ConsumerOffset.objects.order_by("pk").values())
    committed = kafka_broker.partition_states([topic], group)

    done = replay_events(Criteria(since=moment), ["one"], reason="the bug is mended")
    while retry_due().resolved:
        pass

    assert (done.source, done.deliveries) == ("broker", 40)
    again = effects("one")[60:]
    assert sorted(again) == list(range(20, 60))
    for key in range(7):
        of_key = [number for number in again if number % 7 == key]
        assert of_key == sorted(of_key)
    assert len(effects("other")) == 60
    assert list(ConsumerOffset.objects.order_by("pk").values()) == rows
    assert kafka_broker.partition_states([topic], group) == committed


def test_a_group_is_reset_when_its_consumer_has_ended(group: str, kafka_broker: Broker) -> None:
    """While a real member runs nothing moves; then databases and Kafka go to the time together."""
    write(range(20), kafka_broker)
    with running(group, kafka_broker):
        deadline = time.monotonic() + 60
        while len(effects("other")) < 20:
            assert time.monotonic() < deadline
        with pytest.raises(InvalidStateError, match="has members: folio_events on"):
            reset_offsets(group, Target(end="earliest"), reason="a test")
        moment = timezone.now()
        write(range(20, 60), kafka_broker)
        while len(effects("other")) < 60:
            assert time.monotonic() < deadline
    before = {place.partition: place.offset for place in ConsumerOffset.objects.all()}

    moves = reset_offsets(group, Target(time=moment), again=True, reason="a test")

    assert sum(move.between for move in moves) == 40
    rows = {place.partition: place.offset for place in ConsumerOffset.objects.all()}
    states = kafka_broker.partition_states([wire_topic(TOPIC, None)], group)
    assert rows == {place.partition: state.committed for place, state in states.items()}
    assert rows != before
    assert all(state.own_commit for state in states.values())
    consume(group, kafka_broker, lambda: len(effects("other")) == 100)
    for name in ("one", "other"):
        assert sorted(effects(name)) == sorted([*range(20), *range(20, 60), *range(20, 60)])


def test_a_partition_that_a_foreign_tool_has_stopped_goes_on(
    group: str, kafka_broker: Broker
) -> None:
    """A reset to where the group was makes Kafka's offset our own again."""
    write(range(30), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 30)
    topic = wire_topic(TOPIC, None)
    tool = ForeignTool(kafka_options(**{"group.id": group}))
    tool.commit(
        offsets=[KafkaPartition(topic, number, 0) for number in range(3)], asynchronous=False
    )
    tool.close()
    states = kafka_broker.partition_states([topic], group)
    assert not any(state.own_commit for state in states.values())

    reset_offsets(group, Target(end="latest"), reason="somebody moved it")

    write(range(30, 40), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 40)
    assert sorted(effects("one")) == list(range(40))


def test_a_topic_that_was_created_anew_is_read_after_a_reset(
    group: str, kafka_broker: Broker
) -> None:
    """The new topic's id is written down with the offset, so that nothing is stopped."""
    write(range(10), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 10)
    topic = wire_topic(TOPIC, None)
    kafka_broker.delete_topics([topic])
    deadline = time.monotonic() + 30
    while not kafka_broker.missing_topics([topic]):
        assert time.monotonic() < deadline
    kafka_broker.create_topics([TopicSpec(topic, 3, 1)])
    kafka_broker.forget_topics()

    moves = reset_offsets(group, Target(end="earliest"), reason="the topic was created anew")

    assert {move.new for move in moves} == {0}
    write(range(10, 20), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 20)


def test_the_outbox_serves_when_kafka_has_deleted_the_window(
    group: str, kafka_broker: Broker
) -> None:
    """The same ids run again, from rows whose place in the log is gone."""
    from confluent_kafka.admin import AdminClient

    moment = timezone.now()
    write(range(10), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 10)
    topic = wire_topic(TOPIC, None)
    ends = kafka_broker.partition_states([topic])
    admin = AdminClient(kafka_options())
    deleted = admin.delete_records([KafkaPartition(*at, s.high) for at, s in ends.items()])
    for future in deleted.values():
        future.result(30)
    ids = set(OutboxMessage.objects.values_list("event_id", flat=True))

    with pytest.raises(InvalidStateError, match="has been deleted"):
        replay_events(Criteria(since=moment), ["one"], reason="a bug")
    first = OutboxMessage.objects.earliest("id")
    since = first.publication.published_at
    done = replay_events(Criteria(since=since), ["one"], reason="a bug")
    while retry_due().resolved:
        pass

    assert (done.source, done.deliveries) == ("outbox", 10)
    seen: list[uuid.UUID] = list(
        Effect.objects.filter(receiver="one").values_list("event_id", flat=True)
    )
    assert sorted(seen) == sorted([*ids, *ids])


def test_a_range_of_one_partition_is_replayed(group: str, kafka_broker: Broker) -> None:
    """From the first offset to the one before the end."""
    write(range(30), kafka_broker)
    consume(group, kafka_broker, lambda: len(effects("other")) == 30)
    place = TopicPartition(wire_topic(TOPIC, None), 0)
    high = kafka_broker.partition_states([place.topic])[place].high

    done = replay_events(
        Criteria(topic=TOPIC, partition=0, from_offset=1, to_offset=high - 1),
        ["one"],
        reason="a bug",
    )

    assert done.deliveries == high - 2
