"""Facts about the port, shown for every broker: memory, database and a real Kafka."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from folio_events import inbox, topics
from folio_events.brokers.base import Acknowledgement, PartitionState, TopicSpec
from folio_events.brokers.database import DatabaseBroker
from folio_events.conf import Settings
from folio_events.exceptions import BrokerError, FencedError, MessageTooLargeError
from folio_events.message import Record, TopicPartition
from tests.contract.stage import (
    Member,
    Stage,
    counted,
    message,
    publish,
    taken,
    turns,
    values,
    values_by_key,
)

#: Key to its partition of six and of seven, as Kafka's Java producer chooses.
#: Source: murmur2 of org.apache.kafka.common.utils.UtilsTest, positive, modulo the partitions.
PARTITIONS = {
    b"21": (0, 3),
    b"foobar": (0, 0),
    b"a-little-bit-long-string": (2, 1),
    b"a-little-bit-longer-string": (5, 0),
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": (5, 3),
    b"abc": (3, 4),
    b"": (3, 2),
    b"1": (3, 2),
    b"\xff\x00\x80": (4, 6),
    "Mühlhausen".encode(): (4, 2),
    b"0b96a642-5e7f-452d-9cae-9cee66c9a892": (3, 4),
    b"a" * 1000: (5, 4),
}


# Topics


def test_a_broker_that_is_there_answers(stage: Stage) -> None:
    """Nobody has to wait for the time that it is given."""
    stage.broker.ping(timeout=30)


def test_missing_topics_names_those_that_do_not_exist(stage: Stage) -> None:
    """Of several names, exactly the ones without topic come back."""
    there = stage.topic()

    assert stage.broker.missing_topics([there, stage.name("a"), stage.name("b")]) == {
        stage.name("a"),
        stage.name("b"),
    }
    assert stage.broker.missing_topics([]) == set()


def test_create_topics_says_what_it_created(stage: Stage) -> None:
    """The names of new topics come back, those of topics that exist do not."""
    there = stage.topic()

    created = stage.broker.create_topics(
        [TopicSpec(there, 1, 1), TopicSpec(stage.name("new"), 2, 1)]
    )

    assert created == {stage.name("new")}
    assert stage.broker.missing_topics([there, stage.name("new")]) == set()


def test_create_topics_again_changes_nothing(stage: Stage) -> None:
    """A topic that exists keeps its records and its number of partitions."""
    topic = stage.topic(partitions=2)
    publish(stage.broker, [message(topic, b"kept")])

    assert stage.broker.create_topics([TopicSpec(topic, 7, 1)]) == set()

    publish(stage.broker, [message(topic, b"%d" % n, key=b"%d" % n) for n in range(40)])
    records = stage.reader(topic).read(41)
    assert b"kept" in values(records)
    assert {record.partition for record in records} == {0, 1}


def test_create_topics_with_nothing_does_nothing(stage: Stage) -> None:
    """An empty list is no error."""
    assert stage.broker.create_topics([]) == set()


def test_two_may_create_the_same_topics_at_once(stage: Stage) -> None:
    """Both succeed, whatever order they name the topics in; each topic is there once."""
    names = [stage.name(f"n{number}") for number in range(30)]
    together = threading.Barrier(2)

    def create(order: list[str]) -> set[str]:
        broker = stage.other()
        try:
            together.wait(10)
            return broker.create_topics([TopicSpec(name, 3, 1) for name in order])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        created = [pool.submit(create, order) for order in (names, names[::-1])]
        assert created[0].result() | created[1].result() == set(names)

    assert stage.broker.missing_topics(names) == set()
    reports = publish(stage.broker, [message(names[0], key=b"%d" % n) for n in range(50)])
    assert {report.partition for report in reports} == {0, 1, 2}


# Publishing


def test_publish_reports_on_each_message_in_order(stage: Stage) -> None:
    """Report n says where message n stands, over several topics and partitions."""
    names = [stage.topic(partitions=3, ending=ending) for ending in ("a", "b")]
    sent = [
        message(names[number % 2], b"%d" % number, key=b"key-%d" % (number % 7))
        for number in range(100)
    ]

    reports = publish(stage.broker, sent)

    found = {
        (record.topic, record.partition, record.offset): record.value
        for record in stage.reader(*names).read(100)
    }
    assert [
        found[one.topic, report.partition, report.offset]
        for one, report in zip(sent, reports, strict=True)
    ] == [one.value for one in sent]


def test_publish_of_nothing_reports_nothing(stage: Stage) -> None:
    """An empty batch has no reports."""
    assert stage.broker.publish([], timeout=5) == []


def test_offsets_of_a_partition_are_dense(stage: Stage) -> None:
    """Over several batches the offsets of one partition count up from 0."""
    topic = stage.topic()

    reports = [publish(stage.broker, [message(topic)] * size) for size in (1, 3, 1)]

    assert [report for batch in reports for report in batch] == [
        Acknowledgement(0, offset) for offset in range(5)
    ]


def test_messages_of_one_key_keep_their_order(stage: Stage) -> None:
    """Within and across batches, the log has each key's messages in the order given."""
    topic = stage.topic(partitions=4)
    keys = [b"key-%d" % number for number in range(10)]
    sent = [(keys[number % 10], b"%04d" % number) for number in range(600)]

    for start in range(0, 600, 200):
        publish(
            stage.broker,
            [message(topic, value, key=key) for key, value in sent[start : start + 200]],
        )

    found = values_by_key(stage.reader(topic).read(600))
    assert found == {key: [v for k, v in sent if k == key] for key in keys}


@pytest.mark.parametrize("count", [6, 7])
def test_a_key_stands_where_kafkas_java_producer_would_put_it(stage: Stage, count: int) -> None:
    """A table of keys has the same partitions on all brokers."""
    topic = stage.topic(partitions=count)

    reports = publish(stage.broker, [message(topic, key=key) for key in PARTITIONS])

    chosen = {key: report.partition for key, report in zip(PARTITIONS, reports, strict=True)}
    assert chosen == {key: place[count - 6] for key, place in PARTITIONS.items()}


def test_a_message_comes_back_byte_for_byte(stage: Stage) -> None:
    """Topic, key, value and timestamp of a record are those of the message and its time."""
    topic = stage.topic()
    before = int(time.time() * 1000)
    value = bytes(range(256)) * 20

    publish(stage.broker, [message(topic, value, key=b"\xff\xfe\x00 no UTF-8")])

    (record,) = stage.reader(topic).read(1)
    assert (record.topic, record.partition, record.offset) == (topic, 0, 0)
    assert (record.key, record.value) == (b"\xff\xfe\x00 no UTF-8", value)
    assert type(record.key) is type(record.value) is bytes
    assert before - 1000 <= record.timestamp <= int(time.time() * 1000) + 1000


def test_headers_keep_names_order_and_bytes(stage: Stage) -> None:
    """Repeated names, empty values, missing values and any bytes come back as they were."""
    topic = stage.topic()
    headers = [
        ("twice", b"1"),
        ("other", b"x"),
        ("twice", b"2"),
        ("empty", b""),
        ("missing", None),
        ("bytes", bytes(range(256))),
        ("text", "Zürich, 図書館".encode()),
        ("Näme", b"a name beyond ASCII"),
    ]

    publish(stage.broker, [message(topic, headers=headers), message(topic)])

    with_headers, without = stage.reader(topic).read(2)
    assert with_headers.headers == headers
    assert without.headers == []


def test_a_null_key_and_a_null_value_stay_null(stage: Stage) -> None:
    """Neither a missing key nor a tombstone turns into empty bytes, nor the other way round."""
    topic = stage.topic()
    pairs = [(None, b"x"), (b"k", None), (None, None), (b"", b""), (b"k", b"x")]

    publish(stage.broker, [message(topic, value, key=key) for key, value in pairs])

    assert [(r.key, r.value) for r in stage.reader(topic).read(5)] == pairs


def test_a_message_as_large_as_the_topic_takes_is_taken(stage: Stage) -> None:
    """``max_message_bytes`` promises no more than the broker keeps."""
    topic = stage.topic()
    limit = stage.broker.max_message_bytes(topic)
    assert limit is not None
    largest = message(topic, headers=[("a", b"1"), ("b", b"2")])
    largest = message(
        topic, b"x" * (limit - largest.size + len(b"{}")), headers=[("a", b"1"), ("b", b"2")]
    )
    assert largest.size == limit

    publish(stage.broker, [largest])

    assert values(stage.reader(topic).read(1)) == [largest.value]


def test_a_message_too_large_is_refused_for_good_with_the_rest_of_its_key(stage: Stage) -> None:
    """Its error is not retryable, none of its key comes after it, other keys are there."""
    topic = stage.topic(partitions=3)
    limit = stage.broker.max_message_bytes(topic)
    assert limit is not None
    batch = [
        message(topic, b"first", key=b"large"),
        message(topic, b"other 1", key=b"other"),
        message(topic, b"x" * (limit + 1000), key=b"large"),
        message(topic, b"follower", key=b"large"),
        message(topic, b"other 2", key=b"other"),
        message(topic, b"no key", key=None),
    ]

    reports = stage.broker.publish(batch, timeout=30)

    assert isinstance(reports[2], MessageTooLargeError)
    assert not reports[2].retryable
    assert isinstance(reports[3], BrokerError)
    assert reports[3].retryable
    for index in (0, 1, 4, 5):
        taken(reports[index])
    assert values_by_key(stage.reader(topic).read(4)) == {
        b"large": [b"first"],
        b"other": [b"other 1", b"other 2"],
        None: [b"no key"],
    }


def test_a_message_too_large_without_key_stops_nobody(stage: Stage) -> None:
    """Without key there is no order that others would have to keep."""
    topic = stage.topic()
    limit = stage.broker.max_message_bytes(topic) or 0

    reports = stage.broker.publish(
        [
            message(topic, b"x" * (limit + 1000), key=None),
            message(topic, b"next", key=None),
            message(topic, b"keyed"),
        ],
        timeout=30,
    )

    assert isinstance(reports[0], MessageTooLargeError)
    assert values(stage.reader(topic).read(2)) == [b"next", b"keyed"]


def test_after_a_refusal_the_next_batch_takes_the_key_again(stage: Stage) -> None:
    """Who holds a key back is the relay; the broker forgets with the call."""
    topic = stage.topic()
    limit = stage.broker.max_message_bytes(topic) or 0
    stage.broker.publish([message(topic, b"x" * (limit + 1000))], timeout=30)

    publish(stage.broker, [message(topic, b"small again")])

    assert values(stage.reader(topic).read(1)) == [b"small again"]


@pytest.mark.django_db(transaction=True)
def test_a_log_in_the_database_rolls_back_with_its_transaction() -> None:
    """What a rolled-back relay published to the database broker was never there."""
    stage_broker = DatabaseBroker({})
    stage_broker.create_topics([TopicSpec("t", 1, 1)])
    assert stage_broker.lives_in("default")
    assert not stage_broker.lives_in("other")

    with transaction.atomic():
        publish(stage_broker, [message("t", b"never")])
        transaction.set_rollback(True)

    assert publish(stage_broker, [message("t", b"first")]) == [Acknowledgement(0, 0)]


@pytest.mark.django_db
def test_topics_in_the_database_are_created_in_one_order() -> None:
    """Two that name the same topics cannot wait for each other's rows."""
    broker = DatabaseBroker({})
    names = [f"topic-{number:03}" for number in range(50)]

    with CaptureQueriesContext(connection) as captured:
        broker.create_topics([TopicSpec(name, 1, 1) for name in names[::-1]])

    (insert,) = [query["sql"] for query in captured if query["sql"].startswith("INSERT")]
    assert re.findall(r"topic-\d+", insert) == names


# Reading


@pytest.mark.parametrize("timeout", [0.0, 0.4])
def test_a_poll_returns_within_its_timeout(stage: Stage, timeout: float) -> None:
    """With nothing there, and while the group still forms, a poll gives up in time."""
    reader = stage.reader(stage.topic())

    for _ in range(3):
        began = time.monotonic()
        assert reader.poll(timeout=timeout) == []
        assert time.monotonic() - began < timeout + 1.0


def test_a_poll_returns_as_soon_as_something_comes(stage: Stage) -> None:
    """It does not wait for the rest of its timeout, nor for as many records as it may fetch."""
    topic = stage.topic()
    reader = stage.reader(topic)
    publish(stage.broker, [message(topic, b"warm")])
    reader.read(1)

    def publish_one() -> None:
        try:
            publish(stage.broker, [message(topic, b"new")])
        finally:
            connections.close_all()

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(publish_one)
        found = reader.poll(limit=500, timeout=30.0)
        done.result()
    assert values(found) == [b"new"]
    assert time.monotonic() - began < 10


def test_a_poll_returns_no_more_than_its_limit(stage: Stage) -> None:
    """What is over the limit, in one partition or several, comes with the next polls."""
    topic = stage.topic(partitions=3)
    sent = [b"%d" % number for number in range(30)]
    publish(stage.broker, [message(topic, value, key=value) for value in sent])
    reader = stage.reader(topic)

    found: list[Record] = []
    while len(found) < 30:
        records = reader.poll(limit=4, timeout=5.0)
        assert len(records) <= 4
        found += records

    assert counted(found) == dict.fromkeys(sent, 1)


def test_two_groups_each_get_every_message(stage: Stage) -> None:
    """A topic is an event bus: what one group read, another reads as well."""
    topic = stage.topic(partitions=3)
    sent = [b"%d" % number for number in range(60)]
    members = [stage.member(f"{stage.prefix}-{group}", topic) for group in ("one", "two")]

    publish(stage.broker, [message(topic, value, key=value) for value in sent])
    turns(members, lambda: all(len(member.handled) >= 60 for member in members))

    for member in members:
        assert counted(member.handled) == dict.fromkeys(sent, 1)


def test_two_members_of_a_group_share_the_partitions(stage: Stage) -> None:
    """Each message is handled once by one of them; an exclusive broker gives each a part."""
    topic = stage.topic(partitions=4)
    group = f"{stage.prefix}-group"
    members = [stage.member(group, topic) for _ in range(2)]
    turns(members, lambda: _have_partitions(stage, *members))
    sent = [b"%d" % number for number in range(200)]

    # In two parts, so that both get something of what comes.
    for part, total in ((sent[:100], 100), (sent[100:], 200)):
        publish(stage.broker, [message(topic, value, key=value) for value in part])
        turns(members, partial(_have_handled, total, members))

    one, two = members
    assert counted([*one.handled, *two.handled]) == dict.fromkeys(sent, 1)
    if _is_exclusive(stage):
        assert one.handled
        assert two.handled
        shares = [{record.partition for record in member.handled} for member in members]
        assert shares[0] & shares[1] == set()


def _is_exclusive(stage: Stage) -> bool:
    return not isinstance(stage.broker, DatabaseBroker)


def _have_handled(total: int, members: Sequence[Member]) -> bool:
    return sum(len(member.handled) for member in members) >= total


def _have_partitions(stage: Stage, *members: Member) -> bool:
    return not _is_exclusive(stage) or all(member.given for member in members)


def test_an_exclusive_broker_says_so(stage: Stage) -> None:
    """The consumer waits for a lock only where nobody else can be at work on the partition."""
    reader = stage.reader(stage.topic())

    assert reader.subscription.exclusive is _is_exclusive(stage)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_lock_decides_who_handles_a_partition_that_several_see() -> None:
    """While one consumer has the offset row, another sees the records and gives way."""
    broker = DatabaseBroker({})
    broker.create_topics([TopicSpec("t", 1, 1)])
    publish(broker, [message("t", b"one")])
    place = TopicPartition("t", 0)
    lane = inbox.Lane(group="group", database="default")
    inbox.start(lane, {place: inbox.Position(0)})
    seen: list[Record] = []

    def second() -> None:
        try:
            seen.extend(broker.subscribe("group", ["t"], lambda _places: {}).poll(10, 0.0))
            with transaction.atomic():
                inbox.lock(lane, {place: 0}, wait=False)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            inbox.lock(lane, {place: 0}, wait=False)
            with pytest.raises(FencedError):
                pool.submit(second).result()
        assert len(seen) == 1
        pool.submit(second).result()


def test_a_new_member_goes_on_after_what_the_group_has_done(stage: Stage) -> None:
    """A commit outlives the member that made it."""
    topic = stage.topic()
    group = f"{stage.prefix}-group"
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(5)])
    first = stage.member(group, topic)
    turns([first], lambda: len(first.handled) >= 5)
    first.close()
    publish(stage.broker, [message(topic, b"new")])

    second = stage.member(group, topic)
    turns([second], lambda: second.handled)

    assert values(second.handled) == [b"new"]


def test_a_group_without_commit_starts_at_the_first_record(stage: Stage) -> None:
    """Nothing that was published before a group existed is passed over."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"old")])

    member = stage.member(f"{stage.prefix}-late", topic)
    turns([member], lambda: member.handled)

    assert values(member.handled) == [b"old"]


def test_positions_say_where_to_start(stage: Stage) -> None:
    """The consumer's own offsets win over what the broker has; others start by the broker."""
    topic = stage.topic(partitions=2)
    group = f"{stage.prefix}-group"
    keys = {key: place[0] % 2 for key, place in PARTITIONS.items()}
    publish(stage.broker, [message(topic, b"%d" % n, key=key) for n in range(3) for key in keys])
    member = stage.member(group, topic)
    turns([member], lambda: len(member.handled) >= 3 * len(keys))
    member.close()
    places = [TopicPartition(topic, number) for number in (0, 1)]
    counts = [sum(1 for r in member.handled if r.partition == number) for number in (0, 1)]

    reader = stage.reader(
        topic, group=group, at={places[0]: counts[0] - 2, places[1]: counts[1] - 1}
    )

    found = reader.read(3)
    assert sorted((r.partition, r.offset) for r in found) == [
        (0, counts[0] - 2),
        (0, counts[0] - 1),
        (1, counts[1] - 1),
    ]


def test_positions_are_asked_with_what_the_broker_knows(stage: Stage) -> None:
    """First and next offset of each partition, and the commit where brokers keep one."""
    topic = stage.topic()
    place = TopicPartition(topic, 0)
    group = f"{stage.prefix}-group"
    publish(stage.broker, [message(topic)] * 3)
    for committed in (None, 3 if _is_exclusive(stage) else None):
        told: dict[TopicPartition, PartitionState] = {}

        def positions(
            states: Mapping[TopicPartition, PartitionState],
            told: dict[TopicPartition, PartitionState] = told,
        ) -> dict[TopicPartition, int | None]:
            told.update(states)
            return {place: 0}

        subscription = stage.broker.subscribe(group, [topic], positions)
        found: list[Record] = []
        while len(found) < 3:
            found += subscription.poll(10, 5.0)
        subscription.commit({place: 3})
        subscription.close()

        state = told[place]
        assert (state.low, state.high, state.committed) == (0, 3, committed)
        assert state.own_commit


def test_a_partition_without_position_is_not_read(stage: Stage) -> None:
    """Where ``positions`` says None nothing is fetched; the other partitions go on."""
    topic = stage.topic(partitions=2)
    keys = {PARTITIONS[key][0] % 2: key for key in PARTITIONS}
    publish(stage.broker, [message(topic, b"%d" % n, key=keys[n % 2]) for n in range(10)])
    stopped = TopicPartition(topic, 0)

    reader = stage.reader(topic)
    reader.at[stopped] = None  # type: ignore[assignment]  # of the port, not of a reader

    assert values(reader.read(5)) == [b"1", b"3", b"5", b"7", b"9"]
    assert reader.poll() == []


def test_a_paused_partition_comes_again_after_its_time(stage: Stage) -> None:
    """While it is aside the others go on; what it holds is read later, from where it stopped."""
    topic = stage.topic(partitions=2)
    keys = {PARTITIONS[key][0] % 2: key for key in PARTITIONS}
    reader = stage.reader(topic)
    publish(stage.broker, [message(topic, b"warm", key=key) for key in keys.values()])
    reader.read(2)

    reader.subscription.pause([TopicPartition(topic, 0)], 3600)
    publish(stage.broker, [message(topic, b"%d" % n, key=keys[n % 2]) for n in range(10)])
    assert values(reader.read(5)) == [b"1", b"3", b"5", b"7", b"9"]
    assert reader.poll() == []

    reader.subscription.pause([TopicPartition(topic, 0)], 0.1)
    assert values(reader.read(5)) == [b"0", b"2", b"4", b"6", b"8"]


def test_keeping_alive_fetches_nothing(stage: Stage) -> None:
    """Records that come meanwhile are there for the next poll, none is passed over."""
    topic = stage.topic(partitions=2)
    reader = stage.reader(topic)
    publish(stage.broker, [message(topic, b"warm")])
    reader.read(1)
    sent = [b"%d" % number for number in range(50)]
    publish(stage.broker, [message(topic, value, key=value) for value in sent])
    until = time.monotonic() + 1.0

    while time.monotonic() < until:
        reader.subscription.keep_alive()

    assert counted(reader.read(50)) == dict.fromkeys(sent, 1)


def test_seeking_back_reads_again(stage: Stage) -> None:
    """After a seek the records from there come once more, in order."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(10)])
    reader = stage.reader(topic)
    reader.read(10)

    reader.seek({TopicPartition(topic, 0): 6})

    assert values(reader.read(4)) == [b"6", b"7", b"8", b"9"]


def test_seeking_back_within_a_batch_reads_again(stage: Stage) -> None:
    """Records that the client fetched ahead do not slip past a seek."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(100)])
    reader = stage.reader(topic)
    while not reader.poll(limit=10, timeout=1.0):
        pass

    reader.seek({TopicPartition(topic, 0): 2})

    assert values(reader.read(98)) == [b"%d" % number for number in range(2, 100)]


def test_seeking_in_a_partition_of_somebody_else_does_nothing(stage: Stage) -> None:
    """A rebalance may have taken it away in the meantime; that is no error."""
    mine, other = stage.topic(ending="mine"), stage.topic(ending="other")
    publish(stage.broker, [message(mine, b"mine"), message(other, b"other")])
    reader = stage.reader(mine)
    reader.read(1)

    reader.subscription.seek({TopicPartition(other, 0): 0})

    publish(stage.broker, [message(mine, b"next")])
    assert values(reader.read(1)) == [b"next"]


def test_a_pattern_sees_a_topic_that_comes_later(stage: Stage) -> None:
    """A subscription by pattern reads a new topic from its first record."""
    prefix = stage.prefix
    reader = stage.reader(rf"^{prefix}\.[^.]+\.item$")
    old = stage.topic(ending="first.item")
    publish(stage.broker, [message(old, b"old")])
    assert values(reader.read(1)) == [b"old"]

    new = stage.topic(ending="second.item")
    publish(stage.broker, [message(new, b"new")])

    assert [(r.topic, r.value) for r in reader.read(1)] == [(new, b"new")]


def test_a_pattern_takes_no_longer_names(stage: Stage) -> None:
    """What receivers listen to is the whole topic, not one that begins or ends like it."""
    settings = Settings(ENV=stage.prefix, TENANCY="folio")
    wanted = [
        topics.wire_topic("inventory.item", tenant, settings) for tenant in ("diku", "foo-tenant")
    ]
    others = [
        stage.name(ending)
        for ending in (
            "diku.inventory.item-extra",
            "diku.inventory.items",
            "diku.inventory.item.more",
            "diku.inventory_item",
            "diku.Default.inventory.item",
            "inventory.item",
        )
    ]
    others.append(f"x{stage.prefix}.diku.inventory.item")
    stage.broker.create_topics([TopicSpec(name, 1, 1) for name in [*wanted, *others]])
    for name in [*others, *wanted]:
        publish(stage.broker, [message(name, name.encode())])

    reader = stage.reader(topics.subscription("inventory.item", settings))

    assert {record.topic for record in reader.read(2)} == set(wanted)
    for name in wanted:
        publish(stage.broker, [message(name, b"last")])
    assert [record.value for record in reader.read(2)] == [b"last", b"last"]


def test_a_name_is_no_pattern(stage: Stage) -> None:
    """The dot of a topic name stands for a dot, and its end for its end."""
    near = [stage.topic(ending=ending) for ending in ("axb", "a.bc", "a.b.c")]
    topic = stage.topic(ending="a.b")
    publish(stage.broker, [message(name, b"near") for name in near])
    publish(stage.broker, [message(topic, b"right")])

    reader = stage.reader(topic)

    assert values(reader.read(1)) == [b"right"]
    assert reader.poll(timeout=0.3) == []


def test_names_and_patterns_go_together(stage: Stage) -> None:
    """A group listens to some topics by name and to others by pattern."""
    named, matched = stage.topic(ending="plain"), stage.topic(ending="tenant.item")
    publish(stage.broker, [message(named, b"named"), message(matched, b"matched")])

    reader = stage.reader(named, rf"^{stage.prefix}\.[^.]+\.item$")

    assert set(values(reader.read(2))) == {b"named", b"matched"}


def test_who_closes_leaves_the_group_to_the_others(stage: Stage) -> None:
    """The partitions of a member that left are read on by another, from where it stopped."""
    topic = stage.topic(partitions=4)
    group = f"{stage.prefix}-group"
    leaver, stayer = (stage.member(group, topic) for _ in range(2))
    turns([leaver, stayer], lambda: _have_partitions(stage, leaver, stayer))
    first = [b"first %d" % number for number in range(40)]
    publish(stage.broker, [message(topic, value, key=value) for value in first])
    turns([leaver, stayer], lambda: len(leaver.handled) + len(stayer.handled) >= 40)

    leaver.close()
    second = [b"second %d" % number for number in range(40)]
    publish(stage.broker, [message(topic, value, key=value) for value in second])
    handled_before = len(stayer.handled)
    turns([stayer], lambda: len(stayer.handled) >= handled_before + 40)

    assert counted([*leaver.handled, *stayer.handled]) == dict.fromkeys([*first, *second], 1)
    assert {record.partition for record in stayer.handled[handled_before:]} == {0, 1, 2, 3}
