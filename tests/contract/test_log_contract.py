"""Facts about the log as an operator reads it, and groups' offsets, for every broker."""

from __future__ import annotations

import time

import pytest

from folio_events.exceptions import BrokerError
from folio_events.message import Record, TopicPartition
from tests.contract.stage import DEADLINE, Stage, message, publish, values


def read(stage: Stage, place: TopicPartition, first: int, end: int) -> list[Record]:
    return [record for batch in stage.broker.read_range(place, first, end) for record in batch]


def test_partition_states_name_the_ends(stage: Stage) -> None:
    """Each partition of the topics that exist is told with its first offset and its end."""
    topic = stage.topic(partitions=2)
    reports = publish(stage.broker, [message(topic) for _ in range(7)])
    full = reports[0].partition

    states = stage.broker.partition_states([topic, stage.name("missing")])

    ends = {place: (state.low, state.high) for place, state in states.items()}
    assert ends == {
        TopicPartition(topic, full): (0, 7),
        TopicPartition(topic, 1 - full): (0, 0),
    }
    assert stage.broker.partition_states([]) == {}


def test_a_range_is_read_and_nothing_around_it(stage: Stage) -> None:
    """From the first offset to the one before the end, in order, whatever the batches."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(1200)])
    place = TopicPartition(topic, 0)

    assert values(read(stage, place, 3, 1100)) == [b"%d" % number for number in range(3, 1100)]
    assert [record.offset for record in read(stage, place, 1199, 1200)] == [1199]
    assert read(stage, place, 5, 5) == []


def test_a_range_may_be_left_early(stage: Stage) -> None:
    """Who stops after the first batch leaves nothing behind that hinders the next reader."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(10)])
    place = TopicPartition(topic, 0)

    batches = stage.broker.read_range(place, 0, 10)
    assert next(iter(batches))[0].value == b"0"
    del batches

    assert len(read(stage, place, 0, 10)) == 10


def test_offsets_at_finds_the_first_record_of_a_time(stage: Stage) -> None:
    """What was published before it is left out; where all is older, the end is named."""
    topic = stage.topic(partitions=2)
    place = TopicPartition(
        topic, publish(stage.broker, [message(topic) for _ in range(3)])[0].partition
    )
    empty = TopicPartition(topic, 1 - place.partition)
    last = read(stage, place, 2, 3)[0].timestamp
    while int(time.time() * 1000) <= last + 1:
        time.sleep(0.001)
    publish(stage.broker, [message(topic) for _ in range(2)])
    newer = read(stage, place, 3, 4)[0].timestamp

    assert stage.broker.offsets_at([place, empty], 0) == {place: 0, empty: 0}
    assert stage.broker.offsets_at([place], newer) == {place: 3}
    assert stage.broker.offsets_at([place], newer + 86_400_000) == {place: 5}


def test_the_offsets_of_a_group_without_members_are_set(stage: Stage) -> None:
    """Its next member goes on from there, and the commit counts as our own."""
    topic = stage.topic()
    publish(stage.broker, [message(topic, b"%d" % number) for number in range(10)])
    place, group = TopicPartition(topic, 0), stage.name("group")

    stage.broker.set_group_offsets(group, {place: 7})
    stage.broker.set_group_offsets(group, {})

    state = stage.broker.partition_states([topic], group)[place]
    if state.committed is None:  # the database broker leaves that to the offset rows
        assert not stage.reader(topic).subscription.exclusive
        return
    assert (state.committed, state.own_commit) == (7, True)
    assert values(stage.reader(topic, group=group).read(3)) == [b"7", b"8", b"9"]


def test_a_group_with_members_is_told_and_not_moved(stage: Stage) -> None:
    """The members are named while they are there; to set offsets meanwhile is refused."""
    topic = stage.topic()
    publish(stage.broker, [message(topic)])
    group = stage.name("group")
    assert stage.broker.group_members(group) == []
    member = stage.reader(topic, group=group)
    member.read(1)
    if not member.subscription.exclusive:
        assert stage.broker.group_members(group) == []  # nobody hands partitions out
        return

    assert len(stage.broker.group_members(group)) == 1
    with pytest.raises(BrokerError, match="has members"):
        stage.broker.set_group_offsets(group, {TopicPartition(topic, 0): 0})

    member.close()
    until = time.monotonic() + DEADLINE
    while stage.broker.group_members(group):
        assert time.monotonic() < until
