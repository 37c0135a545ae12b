"""Facts about topics as every broker keeps them: listed, described, changed, deleted."""

from __future__ import annotations

import time

import pytest

from folio_events.brokers.base import TopicSpec
from folio_events.exceptions import BrokerError
from tests.contract.stage import Stage, message, publish, turns, values


def test_topics_are_listed_by_their_beginning(stage: Stage) -> None:
    """Upper and lower case are two."""
    one, two = stage.topic(ending="a.one"), stage.topic(ending="a.two")
    stage.topic(ending="A.three")

    assert stage.broker.list_topics(stage.name("a.")) == {one, two}


def test_a_topic_is_described_as_it_was_created(stage: Stage) -> None:
    """One that is missing is left out."""
    there = stage.topic(partitions=3)

    found = stage.broker.describe_topics([there, stage.name("missing")])

    assert {name: state.partitions for name, state in found.items()} == {there: 3}
    assert stage.broker.describe_topics([]) == {}


def test_a_topic_grows_and_keeps_its_records(stage: Stage) -> None:
    """New records spread over all partitions."""
    topic = stage.topic(partitions=1)
    publish(stage.broker, [message(topic, b"old")])

    stage.broker.grow_topics({topic: 3})

    assert stage.broker.describe_topics([topic])[topic].partitions == 3
    fresh = stage.other()
    publish(fresh, [message(topic, b"new", key=b"%d" % number) for number in range(30)])
    records = stage.reader(topic).read(31)
    assert values(records).count(b"old") == 1
    assert {record.partition for record in records} == {0, 1, 2}


def test_a_topic_never_shrinks(stage: Stage) -> None:
    """Fewer partitions than it has are an error."""
    topic = stage.topic(partitions=2)

    with pytest.raises(BrokerError):
        stage.broker.grow_topics({topic: 1})

    assert stage.broker.describe_topics([topic])[topic].partitions == 2


def test_a_deleted_topic_is_gone_with_its_records(stage: Stage) -> None:
    """A missing one is no error; one that is created anew is empty."""
    topic, other = stage.topic(ending="one"), stage.topic(ending="two")
    publish(stage.broker, [message(topic), message(other, b"kept")])

    assert stage.broker.delete_topics([topic, stage.name("missing")]) == {topic}

    assert stage.broker.missing_topics([topic, other]) == {topic}
    assert stage.broker.delete_topics([topic]) == set()
    assert values(stage.reader(other).read(1)) == [b"kept"]
    stage.broker.create_topics([TopicSpec(topic, 1, 1)])
    assert stage.broker.describe_use([topic])[topic].newest is None


def test_use_says_what_stands_in_a_topic(stage: Stage) -> None:
    """Where each partition begins and ends, and when its newest record was written."""
    topic = stage.topic(partitions=2)
    before = time.time() * 1000 - 1
    publish(stage.broker, [message(topic, key=b"21"), message(topic, key=b"21")])

    use = stage.broker.describe_use([topic, stage.name("missing")])

    assert use.keys() == {topic}
    assert sorted(use[topic].ends.values()) == [(0, 0), (0, 2)]
    assert before <= (use[topic].newest or 0) <= time.time() * 1000 + 1


def test_use_says_how_far_groups_have_read(stage: Stage) -> None:
    """By what they told the broker; where the broker is told nothing, it knows no group."""
    topic = stage.topic()
    group = stage.name("group")
    publish(stage.broker, [message(topic)] * 3)
    member = stage.member(group, topic)
    turns([member], until=lambda: len(member.handled) == 3)
    exclusive = member.subscription.exclusive
    member.close()

    groups = stage.broker.describe_use([topic])[topic].groups

    assert groups == ({group: {0: 3}} if exclusive else {})
