"""A compacted topic on a real Kafka whose log cleaner has really run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from folio_events.brokers.base import Broker, TopicSpec
from folio_events.compacted import CompactedTopic
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.conftest import kafka_options
from tests.testapp.models import Book

pytestmark = [pytest.mark.kafka, pytest.mark.django_db(transaction=True)]

BOOKS, ROUNDS = 100, 100
#: A segment is closed as soon as can be, and cleaned when it holds anything that is superseded.
EAGER = {
    "cleanup.policy": "compact",
    "segment.ms": "50",
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "100",
}


@pytest.fixture
def quick_cleaner() -> Iterator[None]:
    """The log cleaner looks around five times a second, and not every fifteen seconds."""
    admin = AdminClient(kafka_options())

    def alter(operation: AlterConfigOpType) -> None:
        entry = ConfigEntry("log.cleaner.backoff.ms", "200", incremental_operation=operation)
        brokers = [
            ConfigResource(ResourceType.BROKER, str(number), incremental_configs=[entry])
            for number in admin.list_topics(timeout=15).brokers
        ]
        for future in admin.incremental_alter_configs(brokers).values():
            future.result()

    alter(AlterConfigOpType.SET)
    yield
    alter(AlterConfigOpType.DELETE)


def test_a_new_consumer_rebuilds_the_state_of_ten_thousand_updates(
    kafka_broker: Broker, quick_cleaner: None, folio_events: Callable[..., None]
) -> None:
    """What the cleaner has left is the last event of each key, and of deleted ones nothing."""
    folio_events(TOPICS={"library.book": {"CLEANUP_POLICY": "compact"}}, RELAY_BATCH_SIZE=5000)
    topic = wire_topic("library.book", None)
    kafka_broker.create_topics([TopicSpec(topic, 3, 1, EAGER)])
    books = Book.objects.bulk_create(Book(title="new") for _ in range(BOOKS))
    for number in range(ROUNDS):
        for book in books:
            book.title = f"{book.pk} in edition {number}"
        Book.objects.bulk_update(books, ["title"])
        if number % 20 == 0:
            _drain()
    Book.objects.filter(pk__in=[book.pk for book in books[:10]]).delete()
    _drain()

    left = _wait_until_cleaned(kafka_broker, topic)

    assert left < 1_000, "of 10,120 records"
    with CompactedTopic("library.book", broker=kafka_broker) as compacted:
        assert _state(compacted) == dict(Book.objects.values_list("pk", "title"))
        _follows(compacted)


def _drain() -> None:
    while drain().more:
        pass


def _wait_until_cleaned(broker: Broker, topic: str) -> int:
    """Wait until the cleaner has gone over the log; how many records it has left."""
    deadline = time.monotonic() + 90
    while True:
        left = 0
        with closing(broker.read([topic], latest=False)) as reader:
            while not reader.caught_up():
                left += len(reader.poll(5000, 0.2))
        # A segment is closed when the next record comes, of whatever key.
        Book.objects.bulk_create([Book(title="closes a segment") for _ in range(3)])
        _drain()
        if left < 1_000 or time.monotonic() > deadline:
            return left
        threading.Event().wait(0.2)


def _state(compacted: CompactedTopic) -> dict[int, str]:
    state: dict[int, str] = {}
    for event in compacted.read():
        assert event.key is not None
        if event.type == "DELETE":
            state.pop(int(event.key), None)
        else:
            assert event.new is not None
            state[int(event.key)] = event.new["title"]
    return state


def _follows(compacted: CompactedTopic) -> None:
    book = Book.objects.latest("pk")
    book.title = "the newest edition"
    book.save()
    book.delete()
    _drain()
    stop = threading.Event()
    seen = []
    for event in compacted.follow(stop):
        seen.append((event.type, event.is_tombstone, event.key))
        if event.is_tombstone:
            stop.set()
    key = str(seen[0][2])
    assert seen == [("UPDATE", False, key), ("DELETE", False, key), ("DELETE", True, key)]
