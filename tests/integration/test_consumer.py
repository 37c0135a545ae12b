"""The consumer loses nothing and does nothing twice, whatever ends it and wherever."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from django.db import OperationalError, connection, connections

from folio_events import Event, publish
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.kafka import KafkaBroker, KafkaSubscription
from folio_events.brokers.memory import MemoryBroker, MemorySubscription
from folio_events.consumer import Consumer
from folio_events.exceptions import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    MissingTopicError,
    PublishError,
)
from folio_events.message import TopicPartition
from folio_events.models import ConsumerOffset, Delivery, InboxEntry
from folio_events.relay import drain
from tests.conftest import kafka_options
from tests.note_topic import WIRE, Mood, NoteTopic, effects, note_receiver
from tests.outbox_writer import database_address
from tests.testapp.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return when a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.01)


@contextmanager
def running(*consumers: Consumer) -> Iterator[list[Future[None]]]:
    """Run consumers in threads; they are told to stop at the end of the block."""
    stop = threading.Event()

    def serve(consumer: Consumer) -> None:
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    with ThreadPoolExecutor(len(consumers)) as pool:
        futures = [pool.submit(serve, consumer) for consumer in consumers]
        try:
            yield futures
        finally:
            stop.set()
    for future in futures:
        future.result()


# Kills


def die(*_: object, **__: object) -> None:
    raise SystemExit


def test_a_kill_before_the_database_commit_leaves_nothing_and_loses_nothing(
    notes: NoteTopic,
) -> None:
    """Neither effects nor inbox nor offset; the successor does it all."""
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if event.payload["number"] == 3 and not killed:
            killed.append(1)
            raise SystemExit

    note_receiver("writer", kill_once)
    notes.put_all("abcd")
    with pytest.raises(SystemExit):
        notes.consume()
    assert effects("writer") == []
    assert not InboxEntry.objects.exists()
    notes.restart()
    assert notes.consume() == 4
    assert effects("writer") == [0, 1, 2, 3]


def test_a_kill_between_database_and_broker_commit_doubles_nothing(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's offset is behind, the database's counts."""
    note_receiver("writer")
    notes.put_all("abc")
    with monkeypatch.context() as patched:
        patched.setattr(MemorySubscription, "commit", die)
        with pytest.raises(SystemExit):
            notes.consume()
    assert notes.broker._committed == {}
    assert effects("writer") == [0, 1, 2]
    notes.restart()
    notes.put("d", 3)
    assert notes.consume() == 1
    assert effects("writer") == [0, 1, 2, 3]


def test_the_inbox_keeps_effects_single_where_all_offsets_are_lost(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is read again, and nothing is done again."""
    runs = note_receiver("writer")
    notes.put_all("abc")
    notes.consume()
    notes.restart()
    ConsumerOffset.objects.all().delete()
    notes.broker._committed.clear()
    assert notes.consume() == 3
    assert (effects("writer"), runs) == ([0, 1, 2], [0, 1, 2])


def test_the_brokers_offset_follows_the_databases(notes: NoteTopic) -> None:
    """After the commit, never before."""
    committed_at_run: list[dict[Any, int]] = []
    note_receiver("writer", lambda _event: committed_at_run.append(dict(notes.broker._committed)))
    notes.put("a")
    notes.consume()
    assert committed_at_run == [{}]
    ((group, place), offset) = next(iter(notes.broker._committed.items()))
    assert (group, place.topic, offset) == ("events", WIRE, 1)


# Groups


def test_two_groups_each_get_every_event(notes: NoteTopic) -> None:
    """One is not slowed or skipped by the other; their offsets are their own."""
    note_receiver("here")
    note_receiver("there", group="another-group")
    notes.put_all("abc")
    assert notes.consume() == 3
    assert (effects("here"), effects("there")) == ([0, 1, 2], [])
    assert notes.consume("another-group") == 3
    assert effects("there") == [0, 1, 2]
    notes.put("d", 3)
    notes.consume("another-group")
    assert dict(ConsumerOffset.objects.values_list("group", "offset")) == {
        "events": 3,
        "another-group": 4,
    }


def test_a_group_that_comes_later_gets_all_that_was_published(notes: NoteTopic) -> None:
    """The producer knows nothing of it and changes nothing."""
    note_receiver("here")
    publish("library.note", key="a", payload={"number": 1})
    publish("library.note", key="a", payload={"number": 2})
    drain(broker=notes.broker)
    notes.consume()
    note_receiver("latecomer", group="late")
    assert notes.consume("late") == 2
    assert effects("latecomer") == [1, 2]


def test_a_group_without_receivers_is_refused_by_name() -> None:
    """The error says which groups there are."""
    note_receiver("writer", group="mine")
    with pytest.raises(ConfigurationError, match=r"'yours'\. Groups with receivers: .*mine"):
        Consumer("yours", broker=MemoryBroker({}))


def test_members_of_a_group_on_the_database_broker_share_the_work(
    folio_events: Callable[..., None], only_test_receivers: None
) -> None:
    """Each event takes effect once, each key in order, and both have something to do."""
    folio_events(CONSUMER_BATCH_SIZE=5, CONSUMER_POLL_INTERVAL=0.05)
    workers: Counter[int] = Counter()
    note_receiver("writer", lambda _event: workers.update([threading.get_ident()]))
    for number in range(120):
        publish("library.note", key=f"k{number % 13}", payload={"number": number})
    drain()
    with running(Consumer("events"), Consumer("events"), Consumer("events")):
        wait_for(lambda: InboxEntry.objects.count() == 120, 60)
    assert sorted(effects("writer")) == list(range(120))
    for key in range(13):
        made = Effect.objects.filter(key=f"k{key}").order_by("id").values_list("note", flat=True)
        assert [int(note) for note in made] == list(range(key, 120, 13))
    assert not Delivery.objects.exists()


@pytest.mark.postgres
def test_a_member_does_not_hammer_at_a_partition_that_another_is_at(
    folio_events: Callable[..., None], only_test_receivers: None
) -> None:
    """It looks again now and then, and takes it when it is free."""
    folio_events(TOPIC_PARTITIONS=1)
    note_receiver("writer")
    publish("library.note", key="a", payload={"number": 0})
    drain()
    asked: list[float] = []
    consumer = Consumer("events")
    consumer.step(timeout=0)
    publish("library.note", key="a", payload={"number": 1})
    drain()
    with psycopg.connect(**database_address()) as holder:
        holder.execute("SELECT 1 FROM folio_events_consumeroffset FOR UPDATE")
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            consumer.step(timeout=0.1)
            asked.append(time.monotonic())
        assert effects("writer") == [0]
    assert len(asked) < 20
    wait_for(lambda: consumer.step(timeout=0.1) == 1)
    assert effects("writer") == [0, 1]


# Batches


def test_a_batch_is_as_large_as_the_setting_says(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """Each is one transaction, and within it events run in series."""
    broker = notes.broker
    folio_events(CONSUMER_BATCH_SIZE=3)
    note_receiver("writer")
    notes.put_all("abcdefgh")
    consumer = Consumer("events", broker=broker)
    assert [consumer.step(timeout=0) for _ in range(4)] == [3, 3, 2, 0]
    assert effects("writer") == list(range(8))


def test_the_batch_in_hand_is_finished_before_the_end(notes: NoteTopic) -> None:
    """No new one is begun."""
    inside, go_on = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if event.payload["number"] == 0:
            inside.set()
            assert go_on.wait(20)

    note_receiver("slow", block)
    notes.put_all("abc")
    stop = threading.Event()
    consumer = Consumer("events", broker=notes.broker)

    def serve() -> None:
        try:
            consumer.run(stop)
        finally:
            consumer.close()
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(serve)
        assert inside.wait(20)
        stop.set()
        notes.put("d", 3)
        go_on.set()
        future.result(20)
    assert effects("slow") == [0, 1, 2]
    assert ConsumerOffset.objects.get().offset == 3


# Faults


@pytest.mark.postgres
def test_dead_database_connections_are_replaced(notes: NoteTopic) -> None:
    """Whichever of its connections end, and however often, the consumer goes on."""
    note_receiver("writer")
    notes.put("a", 0)
    with running(Consumer("events", broker=notes.broker)):
        for number in range(1, 4):
            wait_for(lambda n=number: effects("writer") == list(range(n)))  # type: ignore[misc]
            assert end_other_connections() > 0
            notes.put("a", number)
        wait_for(lambda: effects("writer") == [0, 1, 2, 3])
    assert not Delivery.objects.exists()


def end_other_connections() -> int:
    """End all connections to the test's database but that of this thread."""
    connection.ensure_connection()
    own = connection.connection.info.backend_pid
    with psycopg.connect(**database_address(), autocommit=True) as killer:
        rows = killer.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE"
            " datname = current_database() AND pid NOT IN (%s, pg_backend_pid())",
            [own],
        )
        return len(rows.fetchall())


def test_a_broker_that_is_away_for_a_while_is_waited_for(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """The consumer goes on by itself when it is back."""
    broker = notes.broker
    folio_events(POLL_FAILURE_SLEEP=0.01, CONSECUTIVE_ERRORS_LIMIT=10_000)
    note_receiver("writer")
    notes.put("a", 0)
    with running(Consumer("events", broker=broker)):
        wait_for(lambda: effects("writer") == [0])
        broker.available = False
        notes_while_away = publish("library.note", key="a", payload={"number": 1})
        assert drain(broker=broker).unavailable
        broker.available = True
        assert drain(broker=broker).published == 1
        wait_for(lambda: effects("writer") == [0, 1])
    assert InboxEntry.objects.filter(event_id=notes_while_away.id).count() == 1


def test_faults_of_the_loop_end_it_at_the_limit(
    notes: NoteTopic, folio_events: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """With growing pauses, each a warning, and the last error raised."""
    broker = notes.broker
    folio_events(POLL_FAILURE_SLEEP=0.001, CONSECUTIVE_ERRORS_LIMIT=4)
    note_receiver("writer")
    broker.available = False
    consumer = Consumer("events", broker=broker)
    with (
        caplog.at_level(logging.WARNING, logger="folio_events.consumer"),
        pytest.raises(BrokerUnavailableError),
    ):
        consumer.run(threading.Event())
    warnings = [r.getMessage() for r in caplog.records if r.name == "folio_events.consumer"]
    assert len(warnings) == 3
    assert "error 3 in a row" in warnings[-1]


def test_a_good_step_starts_the_count_of_faults_anew(
    notes: NoteTopic, folio_events: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only faults in a row end the loop."""
    broker = notes.broker
    folio_events(POLL_FAILURE_SLEEP=0.001, CONSECUTIVE_ERRORS_LIMIT=3, CONSUMER_POLL_INTERVAL=0.01)
    note_receiver("writer")
    original, stop, polls = MemorySubscription.poll, threading.Event(), []

    def poll(subscription: MemorySubscription, limit: int, timeout: float) -> list[Any]:
        polls.append(1)
        if len(polls) == 20:
            stop.set()
        if len(polls) % 3:
            raise BrokerUnavailableError("away")
        return original(subscription, limit, timeout)

    monkeypatch.setattr(MemorySubscription, "poll", poll)
    consumer = Consumer("events", broker=broker)
    consumer.run(stop)
    consumer.close()
    assert len(polls) == 20


def test_a_fault_that_waiting_does_not_mend_ends_the_loop_at_once(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a missing right."""
    note_receiver("writer")

    def poll(*_: object) -> None:
        raise PublishError("not allowed", retryable=False)

    monkeypatch.setattr(MemorySubscription, "poll", poll)
    with pytest.raises(PublishError, match="not allowed"):
        Consumer("events", broker=notes.broker).run(threading.Event())


def test_failures_of_receivers_never_end_the_loop(
    notes: NoteTopic, folio_events: Callable[..., None]
) -> None:
    """However many there are."""
    broker = notes.broker
    folio_events(CONSECUTIVE_ERRORS_LIMIT=2, CONSUMER_BATCH_SIZE=1)
    note_receiver("failing", Mood(*range(8)))
    note_receiver("sound")
    notes.put_all("abcdefgh")
    with running(Consumer("events", broker=broker)):
        wait_for(lambda: effects("sound") == list(range(8)))
    assert Delivery.objects.count() == 8


def test_a_topic_that_nobody_declared_and_that_is_missing_is_named(
    folio_events: Callable[..., None], only_test_receivers: None
) -> None:
    """Where a consumer would wait for it for ever; declared ones are made."""

    class StrictBroker(MemoryBroker):
        requires_topics = True

    broker = StrictBroker({})
    note_receiver("typo", topic="library.bock")
    note_receiver("declared", topic="library.book")
    with pytest.raises(MissingTopicError, match=r"folio\.library\.bock.*create_topics"):
        Consumer("events", broker=broker).start()
    assert broker.missing_topics({"folio.library.book"}) == set()
    broker.create_topics([TopicSpec("folio.library.bock", 1, 1)])
    Consumer("events", broker=broker).start()


def test_a_position_beyond_the_log_stops_that_partition_only(
    notes: NoteTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic that was created anew is reported, not skipped; other topics go on."""
    memos = NoteTopic(notes.broker, wire="folio.library.memo")
    note_receiver("writer", topic="library.*")
    notes.put_all("abc")
    notes.consume()
    notes.restart()
    notes.broker._log[WIRE] = [[]]
    notes.put("a", 7)
    memos.put("a", 8)
    with caplog.at_level(logging.ERROR, logger="folio_events.consumer"):
        assert notes.consume() == 1
    assert effects("writer") == [0, 1, 2, 8]
    assert f"stopped: group=events topic={WIRE} partition=0 offset=3" in caplog.text


@pytest.mark.parametrize("option", ["enable.auto.commit", "enable.auto.offset.store"])
def test_automatic_commits_are_refused(option: str) -> None:
    """Offsets are committed after the work, or events get lost."""
    with pytest.raises(ConfigurationError, match=option):
        KafkaBroker({"bootstrap.servers": "localhost:1", "consumer": {option: True}})


def test_a_partition_that_cannot_be_moved_yet_is_a_fault_of_the_broker() -> None:
    """The consumer joins anew; librdkafka's own error would end it."""

    class JustAssigned:
        """Answers as librdkafka does between a rebalance and the first fetch."""

        def assignment(self) -> list[KafkaPartition]:
            return [KafkaPartition(WIRE, 0)]

        def seek(self, _place: KafkaPartition) -> None:
            raise KafkaException(KafkaError(KafkaError._STATE, "Erroneous state"))

    subscription = object.__new__(KafkaSubscription)
    subscription._consumer = JustAssigned()  # type: ignore[assignment]
    with pytest.raises(BrokerError, match="Erroneous state") as caught:
        subscription.seek({TopicPartition(WIRE, 0): 3})
    assert caught.value.retryable


# Apache Kafka


def publish_numbers(start: int, stop: int) -> list[uuid.UUID]:
    ids = [
        publish("library.note", key=f"k{number % 5}", payload={"number": number}).id
        for number in range(start, stop)
    ]
    while drain().more:
        pass
    return ids


@pytest.fixture
def kafka_with_one_receiver(
    kafka_broker: Broker,
    only_test_receivers: None,
    folio_events: Callable[..., None],
    settings: Any,
) -> str:
    """A group on Kafka with one receiver; returns its name."""
    options = kafka_options(consumer={"session.timeout.ms": 6000})
    folio_events(BROKER={**settings.FOLIO_EVENTS["BROKER"], "OPTIONS": options})
    note_receiver("writer")
    return str(settings.FOLIO_EVENTS["GROUP"])


@pytest.mark.kafka
def test_what_kafka_did_not_hear_of_takes_effect_once(
    kafka_with_one_receiver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that ends between the two commits leaves Kafka behind, and nobody is harmed."""
    publish_numbers(0, 20)
    first = Consumer(kafka_with_one_receiver)
    with monkeypatch.context() as patched:
        patched.setattr(KafkaSubscription, "commit", die)
        with pytest.raises(SystemExit):
            wait_for(lambda: first.step(timeout=0.5) > 0)
        first.close()
    done = len(effects("writer"))
    assert done > 0
    publish_numbers(20, 30)
    successor = Consumer(kafka_with_one_receiver)
    try:
        wait_for(lambda: successor.step(timeout=0.2) >= 0 and len(effects("writer")) >= 30, 60)
    finally:
        successor.close()
    assert sorted(effects("writer")) == list(range(30))
    for key in range(5):
        made = Effect.objects.filter(key=f"k{key}").order_by("id").values_list("note", flat=True)
        assert [int(note) for note in made] == list(range(key, 30, 5))
    topic = ConsumerOffset.objects.values_list("topic", flat=True)[0]
    assert sum(ConsumerOffset.objects.values_list("offset", flat=True)) == 30
    assert topic.endswith(".library.note")
    get_broker().close()


def test_a_process_that_ends_between_the_lanes_of_a_first_batch_loses_nothing(
    notes: NoteTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that has not begun starts where the batch did, not where the first lane has come to."""
    note_receiver("writer")
    note_receiver("caller", mode="after_commit")
    notes.put_all("ab")
    dispatch_to_lane = Consumer._dispatch_to_lane

    def end_before_the_second(self: Consumer, state: Any, *arguments: Any, **options: Any) -> None:
        if not state.lane.database:
            raise SystemExit
        dispatch_to_lane(self, state, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Consumer, "_dispatch_to_lane", end_before_the_second)
        with pytest.raises(SystemExit):
            notes.consume()
    notes.restart()
    notes.consume()
    assert effects("writer") == [0, 1]
    assert effects("caller") == [0, 1]


@pytest.mark.kafka
@pytest.mark.parametrize("fault", ["broker", "database"])
def test_a_fault_while_partitions_are_handed_over_is_waited_out(
    kafka_with_one_receiver: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """An error in librdkafka's callback would otherwise pass every handler and stop the thread."""
    publish_numbers(0, 5)
    original = KafkaSubscription._states
    faults: list[int] = []

    def fail_once(subscription: KafkaSubscription, consumer: Any, partitions: Any) -> Any:
        if partitions and not faults:
            faults.append(1)
            if fault == "database":
                raise OperationalError("the connection is lost")
            consumer.get_watermark_offsets(partitions[0], timeout=1e-6)
        return original(subscription, consumer, partitions)

    monkeypatch.setattr(KafkaSubscription, "_states", fail_once)
    with running(Consumer(kafka_with_one_receiver)):
        wait_for(lambda: len(effects("writer")) >= 5, 60)
    assert faults
    assert sorted(effects("writer")) == [0, 1, 2, 3, 4]


@pytest.mark.kafka
def test_undecodable_records_on_kafka_stop_nobody(kafka_with_one_receiver: str) -> None:
    """Dead letters with their bytes, and the events around them are handled."""
    publish_numbers(0, 5)
    (topic,) = {
        record_topic
        for record_topic in get_broker().known_topics
        if record_topic.endswith(".library.note")
    }
    producer = Producer(kafka_options())
    for body in (b"\xff\xfe", b"null", b"[]"):
        producer.produce(topic, value=body, key=b"poison")
    producer.flush(20)
    publish_numbers(5, 10)
    consumer = Consumer(kafka_with_one_receiver)
    try:
        wait_for(
            lambda: (
                consumer.step(timeout=0.2) >= 0
                and len(effects("writer")) >= 10
                and Delivery.objects.count() >= 3
            ),
            60,
        )
    finally:
        consumer.close()
    assert sorted(effects("writer")) == list(range(10))
    bodies = {None if d.payload is None else bytes(d.payload) for d in Delivery.objects.all()}
    assert bodies == {b"\xff\xfe", b"null", b"[]"}
    assert set(Delivery.objects.values_list("state", flat=True)) == {"dead"}
