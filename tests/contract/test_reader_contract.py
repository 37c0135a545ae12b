"""Reading outside any group, shown for every broker: memory, database and a real Kafka."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient

from folio_events.brokers.base import Reader, TopicSpec
from folio_events.message import Record, TopicPartition
from tests.contract.stage import DEADLINE, Stage, counted, message, publish, values

Open = Callable[..., Reader]


@pytest.fixture
def read(stage: Stage) -> Open:
    """Opens readers that are closed after the test."""

    def opened(
        *topics: str, latest: bool = False, known: Mapping[TopicPartition, int] | None = None
    ) -> Reader:
        reader = stage.broker.read(topics, latest=latest, known=known or {})
        stage.closing.callback(reader.close)
        return reader

    return opened


def take(reader: Reader, count: int) -> list[Record]:
    """Poll until so many records came."""
    found: list[Record] = []
    until = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} records came"
        found += reader.poll(100, 0.2)
    return found


def numbered(stage: Stage, topic: str, *numbers: int) -> None:
    publish(stage.broker, [message(topic, b"%d" % n, key=b"k%d" % n) for n in numbers])


def test_the_latest_begin_with_what_comes_next(stage: Stage, read: Open) -> None:
    """All that is published once the reader is there is read, and nothing that was before."""
    topic = stage.topic(3)
    numbered(stage, topic, 1, 2, 3, 4)

    reader = read(topic, latest=True)
    numbered(stage, topic, 5, 6, 7)

    assert counted(take(reader, 3)) == Counter([b"5", b"6", b"7"])
    assert reader.poll(100, 0) == []


def test_the_earliest_begin_with_what_is_there(stage: Stage, read: Open) -> None:
    """In the order of each partition."""
    topic = stage.topic(3)
    numbered(stage, topic, *range(20))

    found = take(read(topic), 20)

    for number in range(3):
        offsets = [record.offset for record in found if record.partition == number]
        assert offsets == list(range(len(offsets)))
    assert sorted(map(int, filter(None, values(found)))) == list(range(20))


def test_it_says_when_it_has_caught_up(stage: Stage, read: Open) -> None:
    """That is, with what was there when it was made."""
    topic = stage.topic(2)
    numbered(stage, topic, *range(10))
    reader = read(topic)
    assert not reader.caught_up()

    take(reader, 10)
    _until(lambda: reader.poll(10, 0.1) == [] and reader.caught_up())

    numbered(stage, topic, 11)
    assert reader.caught_up()


def test_of_nothing_it_has_caught_up(stage: Stage, read: Open) -> None:
    """An empty topic, and one that does not exist yet."""
    for topic in (stage.topic(2), stage.name("missing")):
        reader = read(topic)
        _until(lambda reader=reader: reader.poll(10, 0.1) == [] and reader.caught_up())  # type: ignore[misc]


def test_readers_take_nothing_from_each_other(stage: Stage, read: Open) -> None:
    """Each of them reads all partitions."""
    topic = stage.topic(3)
    one, two = read(topic, latest=True), read(topic, latest=True)
    numbered(stage, topic, *range(9))

    assert counted(take(one, 9)) == counted(take(two, 9))


def test_topics_that_come_later_are_read_from_their_beginning(stage: Stage, read: Open) -> None:
    """By name and by pattern, also by a reader that begins with the latest."""
    pattern = rf"^{re.escape(stage.prefix)}\.[^.]+\.note$"
    reader = read(stage.name("named"), pattern, latest=True)
    for name in ("named", "diku.note", "a-b.note", "diku.notes"):
        numbered(stage, stage.topic(ending=name), 1, 2)

    found = take(reader, 6)

    assert {record.topic.removeprefix(f"{stage.prefix}.") for record in found} == {
        "named", "diku.note", "a-b.note",
    }  # fmt: skip
    assert len(found) == 6


def test_a_reader_goes_on_where_another_has_ended(stage: Stage, read: Open) -> None:
    """By its positions; what is new since is read from its beginning."""
    topic = stage.topic(2)
    first = read(topic, latest=True)
    numbered(stage, topic, 1, 2, 3)
    take(first, 3)
    positions = dict(first.positions)
    first.close()

    numbered(stage, topic, 4, 5)
    later = stage.topic(ending="later")
    numbered(stage, later, 6)

    second = read(topic, later, known=positions)
    assert counted(take(second, 3)) == Counter([b"4", b"5", b"6"])


def test_a_limit_is_kept(stage: Stage, read: Open) -> None:
    """No poll brings more than it was asked for."""
    topic = stage.topic()
    numbered(stage, topic, *range(10))
    reader = read(topic)

    left = 10
    while left:
        found = reader.poll(4, 5)
        assert 0 < len(found) <= 4
        left -= len(found)


@pytest.mark.kafka
class TestKafka:
    def test_it_leaves_no_group_behind(self, kafka_stage: Stage) -> None:
        """Neither while it reads nor after it: nothing is committed, nobody is a member."""
        topic = kafka_stage.topic(2)
        with closing(kafka_stage.broker.read([topic], latest=False)) as reader:
            numbered(kafka_stage, topic, 1, 2)
            take(reader, 2)
            assert "folio_events-reader" not in _groups(kafka_stage)
        assert "folio_events-reader" not in _groups(kafka_stage)

    def test_partitions_that_come_later_are_read_from_their_beginning(
        self, kafka_stage: Stage
    ) -> None:
        """A topic that grows loses nothing for a reader of the latest."""
        topic = kafka_stage.topic(1)
        with closing(kafka_stage.broker.read([topic], latest=True)) as reader:
            kafka_stage.broker.grow_topics({topic: 4})
            numbered(kafka_stage, topic, *range(20))

            found = take(reader, 20)

        assert {record.partition for record in found} == {0, 1, 2, 3}

    def test_a_topic_that_is_created_anew_is_read_from_its_beginning(
        self, kafka_stage: Stage
    ) -> None:
        """Once the reader has seen that the old one is gone."""
        topic = kafka_stage.topic(1)
        numbered(kafka_stage, topic, 1, 2)
        with closing(kafka_stage.broker.read([topic], latest=True)) as reader:
            kafka_stage.broker.delete_topics([topic])
            _until(lambda: reader.poll(10, 0.1) == [] and not reader.positions)
            kafka_stage.broker.create_topics([TopicSpec(topic, 1, 1)])
            numbered(kafka_stage, topic, 3)

            assert values(take(reader, 1)) == [b"3"]


def _groups(stage: Stage) -> set[str]:
    admin = AdminClient({"bootstrap.servers": stage.broker.options["bootstrap.servers"]})
    return {group.group_id for group in admin.list_consumer_groups().result().valid}


def _until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
