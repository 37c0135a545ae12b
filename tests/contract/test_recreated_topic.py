"""A topic that is deleted and created anew under a running consumer."""

from __future__ import annotations

import logging
import time
import uuid

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from folio_events import publish, receiver
from folio_events.brokers.base import Broker
from folio_events.consumer import Consumer
from folio_events.event import Event
from folio_events.exceptions import BrokerError
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.conftest import kafka_options

pytestmark = [pytest.mark.kafka, pytest.mark.django_db(transaction=True)]


def write(count: int, broker: Broker) -> None:
    for _ in range(count):
        publish("library.letter", key="1", payload={})
    drained = 0
    while drained < count:
        drained += drain(broker=broker).published


def create(admin: AdminClient, topic: str) -> None:
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)


def test_the_consumer_stops_and_says_so(
    kafka_broker: Broker, only_test_receivers: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its offsets mean other records now: none of them is read, or passed over in silence."""
    handled: list[uuid.UUID] = []

    @receiver("library.letter", group="letters")
    def note(event: Event) -> None:
        handled.append(event.id)

    topic = wire_topic("library.letter", None)
    admin = AdminClient(kafka_options())
    create(admin, topic)
    consumer = Consumer("letters", broker=kafka_broker)
    deadline = time.monotonic() + 60
    try:
        write(20, kafka_broker)
        while len(handled) < 20 and time.monotonic() < deadline:
            consumer.step(timeout=0.2)
        admin.delete_topics([topic])[topic].result(30)
        create(admin, topic)
        kafka_broker.forget_topics()
        write(5, kafka_broker)
        with caplog.at_level(logging.ERROR, "folio_events.consumer"):
            while "stopped: group=letters" not in caplog.text and time.monotonic() < deadline:
                try:
                    consumer.step(timeout=0.2)
                except BrokerError:
                    consumer.close()  # as the loop does
    finally:
        consumer.close()

    assert "created anew" in caplog.text
    assert len(handled) == 20
