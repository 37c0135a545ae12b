"""A topic's limit that was raised counts as soon as a refused message is released."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from folio_events import publish, withheld
from folio_events.brokers.base import Broker
from folio_events.models import WithheldMessage
from folio_events.relay import drain
from folio_events.topics import wire_topic
from tests.conftest import kafka_options

pytestmark = [pytest.mark.kafka, pytest.mark.django_db(transaction=True)]


def test_a_released_message_is_measured_against_the_limit_of_now(kafka_broker: Broker) -> None:
    """Who raises a limit and releases the refused message need not wait or restart the relay."""
    topic = wire_topic("library.letter", None)
    admin = AdminClient(kafka_options())
    created = admin.create_topics([NewTopic(topic, 1, config={"max.message.bytes": "2000"})])
    created[topic].result(30)
    publish("library.letter", key="1", payload={"text": "x" * 5000})
    assert drain(broker=kafka_broker).withheld == 1

    raised = ConfigEntry("max.message.bytes", "9000", incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[raised])
    admin.incremental_alter_configs([change])[change].result(30)
    withheld.release(list(WithheldMessage.objects.values_list("pk", flat=True)))

    assert drain(broker=kafka_broker).published == 1
