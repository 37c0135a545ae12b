"""Topics that a change of topology left: which are listed, which are drained, which are deleted."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from folio_events import declare_topic, inbox
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.consumer import Consumer
from folio_events.inbox import Lane, Position
from folio_events.message import Message, TopicPartition
from folio_events.models import ConsumerOffset
from folio_events.operations.old_topics import OldTopic, delete_drained, old_topics
from folio_events.topics.declared import declared_topics
from tests.note_topic import note_receiver

pytestmark = pytest.mark.django_db

NOW = timedelta(0)
BOOK = "library.book"


@pytest.fixture
def on_memory(folio_events: Callable[..., None]) -> Callable[..., MemoryBroker]:
    """Change the topology; the topics of the memory broker stay."""
    made: list[MemoryBroker] = []

    def change(**keys: object) -> MemoryBroker:
        folio_events(BROKER={"BACKEND": "folio_events.brokers.memory.MemoryBroker"}, **keys)
        broker = get_broker()
        assert isinstance(broker, MemoryBroker)
        if made:
            vars(broker).update(vars(made[0]))
        made.append(broker)
        return broker

    return change


def create(broker: Broker, *names: str) -> None:
    broker.create_topics([TopicSpec(name, 1, 1) for name in names])


def put(broker: Broker, topic: str, count: int = 1) -> None:
    tenant = topic.split(".")[1].encode()
    message = Message(topic, b"key", b"{}", [("folio.tenantId", tenant)])
    broker.publish([message] * count, timeout=30)


def names(found: list[OldTopic]) -> list[str]:
    return [one.name for one in found]


class TestListed:
    def test_under_a_collection_these_are_the_tenants_topics(
        self, on_memory: Callable[..., MemoryBroker]
    ) -> None:
        """And those of other collections, and without tenant; of this project and environment."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        note_receiver("listener", topic="foreign.topic")
        left = ["folio.OTHER.library.book", "folio.diku.library.book", "folio.library.book"]
        others = [
            "folio.ALL.library.book",  # is written
            "folio.diku.library.bookends",
            "folio.diku.foreign.topic",  # is another module's
            "other.diku.library.book",
            "folio2.diku.library.book",
            "folio.x.diku.library.book",
        ]
        create(broker, *left, *others)

        assert names(old_topics()) == left

    def test_without_a_collection_the_one_that_was_left_is_named(
        self, on_memory: Callable[..., MemoryBroker]
    ) -> None:
        """A tenant might be called like one; topics without tenant are old anyway."""
        broker = on_memory(TENANCY="folio")
        create(broker, "folio.ALL.library.book", "folio.diku.library.book", "folio.library.book")

        assert names(old_topics()) == ["folio.library.book"]
        assert names(old_topics(left=["ALL"])) == ["folio.ALL.library.book", "folio.library.book"]

    def test_without_tenancy_tenants_that_were_left_are_named(
        self, on_memory: Callable[..., MemoryBroker]
    ) -> None:
        """Their topics might be another system's."""
        broker = on_memory()
        create(
            broker, "folio.diku.library.book", "folio.college.library.book", "folio.library.book"
        )

        assert names(old_topics()) == []
        assert names(old_topics(left=["diku"])) == ["folio.diku.library.book"]

    def test_a_namespace_stands_before_the_tenant(
        self, on_memory: Callable[..., MemoryBroker]
    ) -> None:
        """It is not taken for one; a topic of the whole environment is never old."""
        declare_topic("DI_COMPLETED", namespace="Default")
        declare_topic("library.shared", environment_only=True)
        try:
            broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
            create(
                broker,
                "folio.Default.diku.DI_COMPLETED",
                "folio.Default.ALL.DI_COMPLETED",
                "folio.library.shared",
            )
            assert names(old_topics()) == ["folio.Default.diku.DI_COMPLETED"]
        finally:
            declared_topics.remove("DI_COMPLETED")
            declared_topics.remove("library.shared")


class TestDrained:
    def test_an_old_topic_is_drained_when_all_groups_have_read_it(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """A group that has not begun has everything to read."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        note_receiver("reader", topic=BOOK, group="reader")
        create(broker, "folio.diku.library.book")
        put(broker, "folio.diku.library.book", 3)

        [before] = old_topics(idle=NOW)
        assert (before.unread["reader"], before.drained) == (3, False)

        read_to_the_end("reader")

        [after] = old_topics(idle=NOW)
        assert (after.unread["reader"], after.drained) == (0, True)

    def test_what_receivers_committed_counts_not_what_the_broker_heard(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """The lane that is furthest behind decides, of a group whose receivers are gone too."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        place = TopicPartition("folio.diku.library.book", 0)
        create(broker, place.topic)
        put(broker, place.topic, 5)
        broker._committed["gone", place] = 5
        inbox.start(Lane(group="gone", database="default"), {place: Position(5)})
        inbox.start(Lane(group="gone", database=""), {place: Position(2)})

        assert [dict(one.unread) for one in old_topics(idle=NOW)] == [{"gone": 3}]

    def test_another_systems_group_counts_too(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """As far as the broker knows it."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        place = TopicPartition("folio.diku.library.book", 0)
        create(broker, place.topic)
        put(broker, place.topic, 5)
        broker._committed["mod-search", place] = 4

        [found] = old_topics(idle=NOW)

        assert (dict(found.unread), found.drained) == ({"mod-search": 1}, False)

    def test_a_topic_to_which_something_came_lately_is_not_drained(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """Though all is read: another process may still write there. One day, unless it is said."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        create(broker, "folio.diku.library.book", "folio.empty.library.book")
        put(broker, "folio.diku.library.book")

        assert [(one.name, one.drained) for one in old_topics()] == [
            ("folio.diku.library.book", False),
            ("folio.empty.library.book", True),
        ]
        assert all(one.drained for one in old_topics(idle=NOW))


def read_to_the_end(group: str) -> None:
    consumer = Consumer(group)
    while consumer.step(timeout=0):
        pass
    consumer.close()


class TestDeleted:
    def test_only_drained_topics_are_deleted(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """With their offsets; and not without being told to."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        note_receiver("reader", topic=BOOK, group="reader")
        create(broker, "folio.ALL.library.book", "folio.diku.library.book", "folio.foreign.thing")
        put(broker, "folio.diku.library.book", 2)
        read_to_the_end("reader")
        create(broker, "folio.college.library.book")
        put(broker, "folio.college.library.book", 2)

        listed = run("--idle", "0")
        assert "folio.diku.library.book: drained\n" in listed
        assert "folio.college.library.book: group reader has 2 to read\n" in listed
        assert listed.endswith("2 old topics, 1 drained, 0 deleted\n")
        deleted = run("--idle", "0", "--delete")

        assert "deleted folio.diku.library.book\n" in deleted
        assert broker.list_topics("") == {
            "folio.ALL.library.book",
            "folio.college.library.book",
            "folio.foreign.thing",
        }
        assert not ConsumerOffset.objects.filter(topic="folio.diku.library.book").exists()

    def test_a_topic_that_comes_alive_after_it_was_listed_stays(
        self, on_memory: Callable[..., MemoryBroker], only_test_receivers: None
    ) -> None:
        """Deleting looks again."""
        broker = on_memory(TENANCY="folio", TENANT_COLLECTION="ALL")
        create(broker, "folio.diku.library.book")
        [found] = old_topics()
        assert found.drained
        put(broker, "folio.diku.library.book")

        assert delete_drained() == set()

    def test_a_time_that_cannot_be_is_refused(self) -> None:
        """By the parser."""
        for text in ("-1", "nan", "soon"):
            with pytest.raises(CommandError, match="no number of seconds"):
                run("--idle", text)

    def test_a_broker_that_is_away_is_an_error(
        self, on_memory: Callable[..., MemoryBroker]
    ) -> None:
        """Without a traceback."""
        on_memory(TENANCY="folio", TENANT_COLLECTION="ALL").available = False
        with pytest.raises(CommandError, match="Unavailable"):
            run()


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("old_topics", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.kafka
def test_old_topics_of_apache_kafka_are_drained_and_deleted(
    kafka_broker: Broker,
    folio_events: Callable[..., None],
    settings: Any,
    only_test_receivers: None,
) -> None:
    """Read to the end by our group and by a foreign one, which Kafka alone knows."""
    env = settings.FOLIO_EVENTS["ENV"]
    folio_events(TENANCY="folio")
    group = f"reader-{uuid.uuid4().hex[:8]}"
    note_receiver("reader", topic=BOOK, group=group)
    old, other = f"{env}.diku.{BOOK}", f"{env}.diku.foreign.topic"
    broker = get_broker()
    create(broker, old, other)
    put(broker, old, 3)
    foreign = f"foreign-{uuid.uuid4().hex[:8]}"
    subscription = broker.subscribe(foreign, [old], lambda _places: {})
    place = TopicPartition(old, 0)
    until = timezone.now() + timedelta(seconds=40)
    while not subscription.poll(10, 0.5):
        assert timezone.now() < until
    subscription.commit({place: 2})
    subscription.close()
    consumer = Consumer(group)
    while ConsumerOffset.objects.filter(group=group, topic=old, offset=3).count() == 0:
        assert timezone.now() < until
        consumer.step()
    consumer.close()
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")

    [found] = old_topics(idle=NOW)
    assert (found.name, dict(found.unread)) == (old, {group: 0, foreign: 1})
    assert delete_drained(idle=NOW) == set()

    again = get_broker().subscribe(foreign, [old], lambda _places: {})
    while not again.poll(10, 0.5):
        assert timezone.now() < until
    again.commit({place: 3})
    again.close()
    assert delete_drained(idle=NOW) == {old}
    assert get_broker().missing_topics({old, other}) == {old}
