"""What a subscription by pattern does when the topics that it takes in go."""

from __future__ import annotations

import re
import time

import pytest

from folio_events.brokers.base import TopicSpec
from folio_events.brokers.kafka import KafkaSubscription
from tests.contract.stage import DEADLINE, Stage, message, publish, values

pytestmark = pytest.mark.kafka


def test_a_pattern_outlives_the_deletion_of_a_topic(kafka_stage: Stage) -> None:
    """A tenant's topic that goes ends nobody's subscription, and may come again."""
    going, staying = (kafka_stage.topic(ending=f"{name}.note") for name in ("diku", "north"))
    reader = kafka_stage.reader(rf"^{re.escape(kafka_stage.prefix)}\.[^.]+\.note$")
    publish(kafka_stage.broker, [message(going, b"1"), message(staying, b"2")])
    assert set(values(reader.read(2))) == {b"1", b"2"}

    kafka_stage.broker.delete_topics([going])
    subscription = reader.subscription
    assert isinstance(subscription, KafkaSubscription)
    deadline = time.monotonic() + DEADLINE
    while going in {partition.topic for partition in subscription._consumer.assignment()}:
        assert time.monotonic() < deadline, "the topic is still assigned"
        assert reader.poll(timeout=0.1) == []

    publish(kafka_stage.broker, [message(staying, b"3")])
    assert values(reader.read(1)) == [b"3"]
    for place in [place for place in reader.at if place.topic == going]:
        del reader.at[place]
    kafka_stage.broker.create_topics([TopicSpec(going, 1, 1)])
    publish(kafka_stage.broker, [message(going, b"again")])
    assert values(reader.read(1)) == [b"again"]
