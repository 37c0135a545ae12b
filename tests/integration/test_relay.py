"""What is in the outbox gets to the broker: all of it, in order, and nothing is marked too early."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
from django.db import Error as DatabaseError
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from folio_events import publish, relay, tenant_context, withheld
from folio_events.brokers import get_broker
from folio_events.brokers.base import Broker, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.cursor import OutboxCursor
from folio_events.exceptions import MissingTopicError, PublishError, TopicRefusedError
from folio_events.message import Message, Record
from folio_events.models import (
    BrokerRecord,
    OutboxMessage,
    Publication,
    RelayCursor,
    RelayGap,
    WithheldMessage,
)
from folio_events.relay import Drain, drain
from tests.faulty_broker import FaultyBroker
from tests.outbox_writer import database_address
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)
sqlite = pytest.mark.skipif(
    bool(os.environ.get("DATABASE_URL")), reason="PostgreSQL has no such lock"
)
TOPIC = "folio.library.note"


def append(*keys: str | None, topic: str = "library.note") -> list[uuid.UUID]:
    """One event for each key; its payload holds a number that counts the events of the call."""
    return [
        publish(topic, key=key, payload={"number": number}).id for number, key in enumerate(keys)
    ]


def event_ids(records: list[Record], key: str | None = None) -> list[uuid.UUID]:
    """Event ids of the records, or of those with a key, in the order of the log."""
    return [
        uuid.UUID(json.loads(record.value or b"")["id"])
        for record in records
        if key is None or record.key == key.encode()
    ]


def drain_all(limit: int | None = None) -> int:
    published = 0
    while True:
        done = drain(limit=limit)
        published += done.published
        if not done.more:
            return published


def marked() -> tuple[int, int, int]:
    return RelayCursor.objects.count(), RelayGap.objects.count(), Publication.objects.count()


def is_number(number: int) -> Callable[[Message], bool]:
    return lambda message: json.loads(message.value or b"")["data"]["number"] == number


def test_a_drain_publishes_and_notes_where_each_message_stands(
    memory_broker: MemoryBroker,
) -> None:
    """Topic, partition and offset of the broker are found by the outbox row."""
    ids = append("a", "b", "a", None)
    assert drain() == Drain(published=4)
    records = memory_broker.records(TOPIC)
    assert Counter(event_ids(records)) == Counter(ids)
    assert event_ids(records, "a") == [ids[0], ids[2]]
    places = {
        (place.topic, place.partition, place.offset): place.outbox_message.event_id
        for place in Publication.objects.select_related("outbox_message")
    }
    assert places == {
        (record.topic, record.partition, record.offset): event_ids([record])[0]
        for record in records
    }
    assert drain() == Drain()


def test_every_message_carries_its_outbox_id_as_sequence(memory_broker: MemoryBroker) -> None:
    """A reader of the last value can tell an old repetition."""
    append("a", "a")
    drain()
    sequences = [int(dict(r.headers)["ce_sequence"] or b"") for r in memory_broker.records(TOPIC)]
    assert sequences == list(OutboxMessage.objects.order_by("id").values_list("id", flat=True))


def test_the_bytes_that_were_stored_are_sent(memory_broker: MemoryBroker) -> None:
    """The relay changes no byte of a body."""
    Book.objects.create(title="Žižka")
    drain()
    (record,) = memory_broker.records("folio.library.book")
    assert record.value == bytes(OutboxMessage.objects.get().payload or b"")


def test_batches_follow_one_another_until_the_outbox_is_empty(
    memory_broker: MemoryBroker,
) -> None:
    """A drain reads at most its limit and says whether there may be more."""
    ids = append(*"aabbab")
    assert drain(limit=4) == Drain(published=4, more=True)
    assert drain(limit=4) == Drain(published=2)
    records = memory_broker.records(TOPIC)
    assert event_ids(records, "a") == [ids[0], ids[1], ids[4]]
    assert event_ids(records, "b") == [ids[2], ids[3], ids[5]]


def test_a_rolled_back_event_is_not_published(memory_broker: MemoryBroker) -> None:
    """Neither of a whole transaction nor of a savepoint."""

    def append_and_fail() -> None:
        with transaction.atomic():
            append("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        append_and_fail()
    with transaction.atomic():
        (kept,) = append("a")
        with pytest.raises(RuntimeError):
            append_and_fail()
    assert drain_all() == 1
    assert event_ids(memory_broker.records(TOPIC)) == [kept]


def test_only_acknowledged_rows_are_passed(faulty_broker: FaultyBroker) -> None:
    """The others come again, in order, and the acknowledged ones do not."""
    ids = append(*"abcabc")
    faulty_broker.acknowledges = lambda message: message.key != b"b"
    done = drain()
    assert done.published == 4
    assert done.unavailable
    assert {p.outbox_message.event_id for p in Publication.objects.all()} == {
        ids[0], ids[2], ids[3], ids[5],
    }  # fmt: skip
    (newer,) = append("b")
    faulty_broker.acknowledges = lambda _message: True
    assert drain() == Drain(published=3)
    assert event_ids(faulty_broker.records(TOPIC), "b") == [ids[1], ids[4], newer]
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter([*ids, newer])
    assert not RelayGap.objects.exists()


def test_a_key_stops_at_its_first_unacknowledged_row(faulty_broker: FaultyBroker) -> None:
    """What was acknowledged before it stays acknowledged."""
    ids = append("a", "a", "a", "b")
    faulty_broker.acknowledges = lambda message: not is_number(1)(message)
    assert drain().published == 2
    assert drain().published == 0
    faulty_broker.acknowledges = lambda _message: True
    assert drain() == Drain(published=2)
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids[:3]


def test_a_broker_that_acknowledges_bit_by_bit_gets_everything_once(
    faulty_broker: FaultyBroker,
) -> None:
    """Each call that got somewhere is followed by another in the same drain."""
    ids = append(*"abcdefgh")
    answered: list[Message] = []

    def acknowledge(message: Message) -> bool:
        answered.append(message)
        return len(answered) % 3 == 0

    faulty_broker.acknowledges = acknowledge
    published = 0
    for _ in range(10):
        published += drain().published
    assert published == len(ids)
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(ids)


def test_a_broker_that_is_down_costs_nothing_but_time(memory_broker: MemoryBroker) -> None:
    """Nothing is written while it is away; afterwards the outbox empties and the counts agree."""
    ids = append(*"abcab")
    memory_broker.available = False
    for _ in range(3):
        done = drain()
        assert done.published == 0
        assert done.unavailable
        assert marked() == (0, 0, 0)
    ids += append(*"bc")
    memory_broker.available = True
    assert drain_all(limit=3) == len(ids)
    assert Counter(event_ids(memory_broker.records(TOPIC))) == Counter(ids)
    assert event_ids(memory_broker.records(TOPIC), "a") == [ids[0], ids[3]]
    assert Publication.objects.count() == OutboxMessage.objects.count() == len(ids)


def test_an_outage_that_begins_while_publishing_writes_nothing(
    faulty_broker: FaultyBroker,
) -> None:
    """The topics are known, the messages get no answer."""
    append("a")
    assert drain().published == 1
    before = marked()
    (later,) = append("b")
    faulty_broker.acknowledges = lambda _message: False
    for _ in range(3):
        assert drain().unavailable
    assert marked() == before
    faulty_broker.acknowledges = lambda _message: True
    assert drain() == Drain(published=1)
    assert event_ids(faulty_broker.records(TOPIC), "b") == [later]


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "with its batch"])
def test_a_refused_row_is_withheld_with_the_later_rows_of_its_key(
    faulty_broker: FaultyBroker, whole: bool
) -> None:
    """Other keys and rows without a key go on; earlier rows of the key were published."""
    ids = append("a", "b", "a", "a", "b", None)
    faulty_broker.refuses = is_number(2)
    faulty_broker.refuses_whole_batches = whole
    done = drain()
    assert (done.published, done.withheld) == (4, 2)
    found = WithheldMessage.objects.order_by("outbox_message")
    assert [(w.outbox_message.event_id, w.state) for w in found] == [
        (ids[2], "refused"),
        (ids[3], "waiting"),
    ]
    assert "PublishError" in found[0].error
    assert found[1].error == ""
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(
        [ids[0], ids[1], ids[4], ids[5]]
    )


def test_the_refused_row_of_a_large_batch_is_found_by_halving(faulty_broker: FaultyBroker) -> None:
    """Each look for it costs Kafka's producer half a second."""
    append(*(f"key {number}" for number in range(200)))
    faulty_broker.refuses = is_number(123)
    faulty_broker.refuses_whole_batches = True
    done = drain()
    assert (done.published, done.withheld) == (199, 1)
    assert len(faulty_broker.batches) < 25


def test_a_topic_that_refuses_us_is_withheld_whole(faulty_broker: FaultyBroker) -> None:
    """Its messages are not tried one by one; other topics go on."""
    append("a", "b", "a", None)
    append("a", topic="library.other")
    faulty_broker.closed = {TOPIC: TopicRefusedError("no right to write")}
    done = drain()
    assert (done.published, done.withheld) == (1, 4)
    assert faulty_broker.batches == [5]
    refused = list(WithheldMessage.objects.filter(state="refused").values_list("pk", flat=True))
    assert len(refused) == 3
    faulty_broker.closed = {}
    withheld.release(refused)
    assert drain_all() == 4


def test_a_topic_that_was_deleted_is_created_by_the_next_drain(faulty_broker: FaultyBroker) -> None:
    """Its messages wait, none is withheld."""
    append("a", "b")
    faulty_broker.closed = {TOPIC: MissingTopicError("there is no such topic")}
    done = drain()
    assert (done.published, done.withheld) == (0, 0)
    assert TOPIC not in faulty_broker.known_topics
    faulty_broker.closed = {}
    assert drain_all() == 2


def test_later_drains_withhold_what_follows_a_refused_row(faulty_broker: FaultyBroker) -> None:
    """No newer row of the key overtakes it; the same key of another topic is free."""
    append("a")
    faulty_broker.refuses = is_number(0)
    assert drain().withheld == 1
    faulty_broker.refuses = lambda _message: False
    follower = append("x", "a")[1]
    other_topic = append("a", topic="library.other")
    done = drain()
    assert (done.published, done.withheld) == (2, 1)
    assert WithheldMessage.objects.get(state="waiting").outbox_message.event_id == follower
    assert event_ids(faulty_broker.records("folio.library.other")) == other_topic
    assert drain() == Drain()


def test_a_refused_row_without_key_holds_nobody_up(faulty_broker: FaultyBroker) -> None:
    """Rows without a key have no order."""
    ids = append(None, None, None)
    faulty_broker.refuses = is_number(1)
    done = drain()
    assert (done.published, done.withheld) == (2, 1)
    assert set(event_ids(faulty_broker.records(TOPIC))) == {ids[0], ids[2]}
    (later,) = append(None)
    assert drain() == Drain(published=1)
    assert later in event_ids(faulty_broker.records(TOPIC))


def test_a_row_too_large_for_its_topic_is_withheld_before_it_is_sent(
    faulty_broker: FaultyBroker,
) -> None:
    """The cause names the size and the limit; the messages around it go out in one batch."""
    faulty_broker.options["max_message_bytes"] = 2000
    append("a")
    publish("library.note", key="b", payload={"text": "x" * 3000})
    append("c")
    done = drain()
    assert (done.published, done.withheld) == (2, 1)
    assert faulty_broker.batches == [2]
    error = WithheldMessage.objects.get().error
    assert error.startswith("MessageTooLargeError")
    assert "2000" in error


def test_a_released_row_goes_before_its_followers_and_they_before_newer_rows(
    faulty_broker: FaultyBroker,
) -> None:
    """The key's order is that of the commits, as if nothing had happened."""
    ids = append("a", "a", "b")
    faulty_broker.refuses = is_number(0)
    drain()
    faulty_broker.refuses = lambda _message: False
    refused = WithheldMessage.objects.get(state="refused")
    withheld.release([refused.pk])
    ids += append("a", "a")
    assert drain_all() == 4
    assert event_ids(faulty_broker.records(TOPIC), "a") == [ids[0], ids[1], ids[3], ids[4]]
    assert set(WithheldMessage.objects.values_list("state", flat=True)) == {"published"}
    assert Publication.objects.count() == 5


def test_followers_keep_their_order_when_a_limit_cuts_through_them(
    faulty_broker: FaultyBroker,
) -> None:
    """Newer rows wait until the last follower is out."""
    ids = append(*"aaaaa")
    faulty_broker.refuses = is_number(0)
    drain()
    faulty_broker.refuses = lambda _message: False
    withheld.release([WithheldMessage.objects.get(state="refused").pk])
    ids += append("a", "a")
    for _ in range(8):
        drain(limit=2)
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids


def test_a_daemon_goes_on_until_all_followers_are_out(faulty_broker: FaultyBroker) -> None:
    """A drain whose released rows filled the limit says that there may be more."""
    ids = append(*"aaaaa")
    faulty_broker.refuses = is_number(0)
    drain()
    faulty_broker.refuses = lambda _message: False
    withheld.release([WithheldMessage.objects.get(state="refused").pk])
    assert drain_all(limit=2) == len(ids)
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids


def test_followers_of_a_discarded_row_are_published(faulty_broker: FaultyBroker) -> None:
    """It alone is given up."""
    ids = append("a", "a", "a")
    faulty_broker.refuses = is_number(0)
    drain()
    withheld.discard([WithheldMessage.objects.get(state="refused").pk], reason="not wanted")
    assert drain_all() == 2
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids[1:]
    assert drain() == Drain()


def test_a_follower_that_is_refused_itself_holds_the_rest_of_its_key(
    faulty_broker: FaultyBroker,
) -> None:
    """After the first is out, the second waits for a person."""
    ids = append("a", "a", "a", "a")
    faulty_broker.refuses = is_number(0)
    drain()
    withheld.release([WithheldMessage.objects.get(state="refused").pk])
    faulty_broker.refuses = is_number(2)
    drain_all()
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids[:2]
    states = WithheldMessage.objects.order_by("outbox_message").values_list("state", flat=True)
    assert list(states) == ["published", "published", "refused", "waiting"]
    faulty_broker.refuses = lambda _message: False
    withheld.release([WithheldMessage.objects.get(state="refused").pk])
    drain_all()
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids


def test_an_outage_during_a_release_loses_nothing(faulty_broker: FaultyBroker) -> None:
    """What was released goes out when the broker is back, before newer rows."""
    ids = append("a", "a")
    faulty_broker.refuses = is_number(0)
    drain()
    faulty_broker.refuses = lambda _message: False
    withheld.release([WithheldMessage.objects.get(state="refused").pk])
    faulty_broker.acknowledges = lambda _message: False
    ids += append("a")
    for _ in range(2):
        assert drain().published == 0
    faulty_broker.acknowledges = lambda _message: True
    assert drain_all() == 3
    assert event_ids(faulty_broker.records(TOPIC), "a") == ids


def test_a_withheld_row_is_logged_without_its_payload(
    faulty_broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the outbox row, topic, key and event."""
    event = publish("library.note", key="a", payload={"secret": "abracadabra"})
    faulty_broker.refuses = lambda _message: True
    with caplog.at_level(logging.DEBUG, logger="folio_events"):
        drain()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert f"event={event.id}" in line
    assert "topic=library.note key=a" in line
    assert "abracadabra" not in caplog.text


def test_a_missing_topic_is_created(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """With as many partitions as the setting says."""
    folio_events(TOPIC_PARTITIONS=3, BROKER={"BACKEND": "tests.faulty_broker.FaultyBroker"})
    append("a")
    assert drain().published == 1
    broker = get_broker()
    assert isinstance(broker, MemoryBroker)
    assert len(broker._log[TOPIC]) == 3


def test_a_row_for_a_missing_topic_is_withheld_where_topics_are_not_created(
    folio_events: Callable[..., None], faulty_broker: FaultyBroker
) -> None:
    """Once the topic is there, releasing it publishes it; other topics go on meanwhile."""
    append("a", topic="library.known")
    drain()
    append("b")
    other = append("c", topic="library.known")
    folio_events(CREATE_TOPICS=False)
    broker = get_broker()
    assert isinstance(broker, FaultyBroker)
    broker._log, broker._members = faulty_broker._log, faulty_broker._members
    done = drain()
    assert (done.published, done.withheld) == (1, 1)
    assert event_ids(broker.records("folio.library.known"), "c") == other
    row = WithheldMessage.objects.get()
    assert row.error.startswith("MissingTopicError")
    assert "create_topics" in row.error
    broker.create_topics([TopicSpec(TOPIC, 1, 1)])
    withheld.release([row.pk])
    assert drain().published == 1
    assert len(broker.records(TOPIC)) == 1


def test_a_topic_that_cannot_be_created_holds_up_no_other(faulty_broker: FaultyBroker) -> None:
    """Its rows are withheld with the broker's word."""
    faulty_broker.uncreatable["folio.library.bad"] = PublishError("no right", retryable=False)
    append("a", topic="library.bad")
    good = append("b")
    done = drain()
    assert (done.published, done.withheld) == (1, 1)
    assert event_ids(faulty_broker.records(TOPIC)) == good
    assert "no right" in WithheldMessage.objects.get().error


def test_a_topic_that_cannot_be_created_just_now_is_waited_for(
    faulty_broker: FaultyBroker,
) -> None:
    """A passing fault of the broker withholds nothing."""
    faulty_broker.uncreatable[TOPIC] = PublishError("no controller just now")
    append("a")
    done = drain()
    assert done.published == 0
    assert "no controller" in done.unavailable
    assert marked() == (0, 0, 0)
    faulty_broker.uncreatable.clear()
    assert drain().published == 1


def test_each_tenant_has_its_own_topic(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """The same key of two tenants has two orders."""
    folio_events(TENANCY="folio", BROKER={"BACKEND": "tests.faulty_broker.FaultyBroker"})
    broker = get_broker()
    assert isinstance(broker, FaultyBroker)
    with tenant_context("diku"):
        append("a")
    with tenant_context("college"):
        append("a", "a")
    broker.refuses = lambda message: "diku" in message.topic
    done = drain()
    assert (done.published, done.withheld) == (2, 1)
    assert len(broker.records("folio.college.library.note")) == 2


def test_a_row_recorded_before_tenants_were_known_is_withheld(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """There is no topic that anybody would read it from; with one topic for all there is."""
    append("a")
    folio_events(TENANCY="folio")
    assert drain().withheld == 1
    assert "without a tenant" in WithheldMessage.objects.get().error
    folio_events(TENANCY="folio", TENANT_COLLECTION="ALL")
    withheld.release([WithheldMessage.objects.get().pk])
    assert drain_all() == 1


def test_a_relay_that_dies_after_the_acknowledgement_repeats_but_loses_nothing(
    faulty_broker: FaultyBroker,
) -> None:
    """Between the broker's word and the cursor's commit the same events come again, none is lost."""
    ids = append("a", "b", "a")

    def die() -> None:
        raise SystemExit

    faulty_broker.after_publish = die
    with pytest.raises(SystemExit):
        drain()
    assert marked() == (0, 0, 0)
    faulty_broker.after_publish = lambda: None
    assert drain() == Drain(published=3)
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(ids * 2)
    firsts = list(dict.fromkeys(event_ids(faulty_broker.records(TOPIC), "a")))
    assert firsts == [ids[0], ids[2]]
    assert drain() == Drain()


def test_of_two_relays_one_works_and_the_other_stands_by(faulty_broker: FaultyBroker) -> None:
    """The second returns at once, and each event is published once."""
    ids = append(*"abc")
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go_on.wait(20)

    faulty_broker.before_publish = wait

    def work() -> Drain:
        try:
            return drain()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(work)
        assert inside.wait(20)
        faulty_broker.before_publish = lambda: None
        try:
            assert drain() == Drain(standby=True)
            assert marked() == (0, 0, 0)
        finally:
            go_on.set()
        assert first.result() == Drain(published=3)
    assert drain() == Drain()
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(ids)


def test_a_standby_takes_over_from_a_relay_that_died(faulty_broker: FaultyBroker) -> None:
    """The lock goes with its holder; gaps and position are where it left them."""
    ids = append(*"abc")

    def work() -> None:
        faulty_broker.acknowledges = lambda message: message.key != b"b"
        drain()

        def die() -> None:
            raise SystemExit

        faulty_broker.before_publish = die
        try:
            drain()
        except SystemExit:
            pass
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    faulty_broker.before_publish = lambda: None
    faulty_broker.acknowledges = lambda _message: True
    assert drain() == Drain(published=1)
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(ids)


def test_relays_in_turns_publish_each_row_once(memory_broker: MemoryBroker) -> None:
    """What one has read the other does not read again."""
    ids: list[uuid.UUID] = []

    def work() -> None:
        try:
            drain_all()
        finally:
            connections.close_all()

    for _ in range(4):
        ids += append(*"ab")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        ids += append(*"ab")
        drain_all()
    assert event_ids(memory_broker.records(TOPIC), "a") == ids[::2]
    assert event_ids(memory_broker.records(TOPIC), "b") == ids[1::2]


@sqlite
@pytest.mark.parametrize("broker", ["memory.MemoryBroker", "database.DatabaseBroker"])
def test_an_idle_drain_takes_no_write_lock_on_sqlite(
    broker: str, folio_events: Callable[..., None]
) -> None:
    """A writer that holds the lock is not waited for."""
    folio_events(BROKER={"BACKEND": f"folio_events.brokers.{broker}"})
    append("a")
    drain_all()
    with sqlite_writer() as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert drain() == Drain()
        writer.execute("ROLLBACK")


@sqlite
def test_followers_of_a_refused_row_do_not_make_idle_drains_lock_sqlite(
    folio_events: Callable[..., None],
) -> None:
    """Until a person decides there is nothing to do."""
    folio_events(
        BROKER={
            "BACKEND": "folio_events.brokers.database.DatabaseBroker",
            "OPTIONS": {"max_message_bytes": 2000},
        }
    )
    publish("library.note", key="a", payload={"text": "x" * 3000})
    append("a")
    assert drain().withheld == 2
    with sqlite_writer() as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert drain() == Drain()
        writer.execute("ROLLBACK")


@sqlite
def test_waiting_for_a_broker_does_not_stop_writers_on_sqlite(faulty_broker: FaultyBroker) -> None:
    """The write lock is free while messages are under way."""
    append("a")
    written: list[int] = []

    def write() -> None:
        with sqlite_writer() as writer:
            writer.execute("INSERT INTO testapp_effect VALUES (NULL, 'x', '0', '', '')")
            written.append(1)

    faulty_broker.before_publish = write
    assert drain().published == 1
    assert written == [1]


@contextmanager
def sqlite_writer() -> Iterator[sqlite3.Connection]:
    """Another connection to the test's database, which does not wait for locks."""
    name = connection.settings_dict["NAME"]
    with closing(sqlite3.connect(name, timeout=0, isolation_level=None)) as opened:
        yield opened


def test_an_idle_drain_writes_nothing(memory_broker: MemoryBroker) -> None:
    """It asks, and that is all."""
    append("a")
    for _ in range(3):  # after the first, ids that other tests have used up are forgotten
        drain()
    before = RelayCursor.objects.get()
    with CaptureQueriesContext(connection) as queries:
        assert drain() == Drain()
    after = RelayCursor.objects.get()
    verbs = {query["sql"].split()[0] for query in queries}
    assert verbs <= {"SELECT", "BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"}
    assert (after.updated_at, after.version) == (before.updated_at, before.version)


@pytest.mark.postgres
def test_an_idle_drain_draws_no_transaction_id(memory_broker: MemoryBroker) -> None:
    """A poll every tenth of a second must not use up transaction ids."""
    append("a")
    for _ in range(3):
        drain()
    drawn = []
    original = relay._drain

    def watched(*arguments: object) -> Drain:
        done = original(*arguments)  # type: ignore[arg-type]
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id_if_assigned()::text")
            drawn.append(cursor.fetchone()[0])
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relay, "_drain", watched)
        drain()
        append("b")
        drain()
    assert drawn[0] is None
    assert drawn[1] is not None


@pytest.mark.postgres
def test_a_connection_that_ends_while_publishing_marks_nothing(
    faulty_broker: FaultyBroker,
) -> None:
    """The fault shows as a database error, and the next drain goes on with another connection."""
    ids = append("a", "b")
    faulty_broker.after_publish = terminate_own_backend()
    with pytest.raises(DatabaseError):
        drain()
    faulty_broker.after_publish = lambda: None
    assert marked() == (0, 0, 0)
    assert drain_all() == 2
    assert Counter(event_ids(faulty_broker.records(TOPIC))) == Counter(ids * 2)


@pytest.mark.postgres
@pytest.mark.parametrize("step", ["read", "save"])
def test_a_connection_that_ends_at_the_cursor_is_a_database_error(
    memory_broker: MemoryBroker, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever statement meets the dead connection, the daemon can tell what happened."""
    append("a")
    original = getattr(OutboxCursor, step)
    terminate = terminate_own_backend()

    def die(*arguments: object) -> object:
        terminate()
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(OutboxCursor, step, die)
        with pytest.raises(DatabaseError):
            drain()
    assert marked() == (0, 0, 0)
    assert drain_all() == 1


def terminate_own_backend() -> Callable[[], None]:
    """A function that ends the database connection of this thread from another one."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid

    def terminate() -> None:
        with psycopg.connect(**database_address(), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    return terminate


def test_rows_that_were_published_before_are_noted_anew(memory_broker: MemoryBroker) -> None:
    """A cursor that was set back by hand repeats them, and the newer place counts."""
    append("a", "b")
    drain()
    places = set(Publication.objects.values_list("topic", "partition", "offset"))
    RelayCursor.objects.all().delete()
    assert drain_all() == 2
    assert Publication.objects.count() == 2
    assert not places & set(Publication.objects.values_list("topic", "partition", "offset"))


def test_the_database_broker_publishes_with_the_cursor_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its log and the cursor are one transaction: a relay that dies repeats nothing."""
    append("a", "b")
    original = OutboxCursor.save

    def die(cursor: OutboxCursor) -> None:
        original(cursor)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(OutboxCursor, "save", die)
        with pytest.raises(SystemExit):
            drain()
    assert not BrokerRecord.objects.exists()
    assert drain_all() == 2
    assert BrokerRecord.objects.count() == 2


@pytest.mark.kafka
def test_the_relay_publishes_to_apache_kafka(kafka_broker: Broker) -> None:
    """The places it notes are where the records stand."""
    ids = append("a", "b", "a")
    assert drain_all() == 3
    topic = Publication.objects.values_list("topic", flat=True)[0]
    subscription = kafka_broker.subscribe("readers", [topic], lambda _places: {})
    found: list[Record] = []
    try:
        for _ in range(100):
            found += subscription.poll(10, 0.3)
            if len(found) >= 3:
                break
    finally:
        subscription.close()
    assert event_ids(found, "a") == [ids[0], ids[2]]
    assert {(r.partition, r.offset): event_ids([r])[0] for r in found} == {
        (p.partition, p.offset): p.outbox_message.event_id for p in Publication.objects.all()
    }
