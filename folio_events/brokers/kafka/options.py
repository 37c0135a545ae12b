"""The options of producer, consumer and admin client: defaults, and what may not be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from django.core.checks import CheckMessage, Error

from folio_events.brokers.kafka.clients import silent
from folio_events.exceptions import ConfigurationError
from folio_events.topics.names import validate_group_instance_id

PRODUCER_DEFAULTS = {
    "acks": "all",
    "enable.idempotence": True,
    # Java's: FOLIO's producers and ours put a key on the same partition.
    "partitioner": "murmur2_random",
    # The relay has its own deadline; librdkafka must not give up in the midst of a key.
    "message.timeout.ms": 0,
    # A topic that was deleted shows within the relay's deadline.
    "topic.metadata.propagation.max.ms": 5_000,
    # Stop before a refused record instead of sending the later ones of its key.
    "enable.gapless.guarantee": True,
    "linger.ms": 5,
    "queue.buffering.max.messages": 100_000,
}
CONSUMER_DEFAULTS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "partition.assignment.strategy": "cooperative-sticky",
    # As FOLIO's wrapper has them.
    "topic.metadata.refresh.interval.ms": 30_000,
    "max.poll.interval.ms": 600_000,
    "session.timeout.ms": 45_000,
}
#: Refused by librdkafka when the group protocol is "consumer" (KIP-848).
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


class Options:
    """The options of each kind of client.

    Args:
        given: librdkafka's options; the members ``producer`` and ``consumer`` are dicts of
            options for the one alone.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        common = {
            name: value for name, value in given.items() if name not in ("producer", "consumer")
        }
        for_consumer = given.get("consumer", {})
        self.common = {**common, "client.id": common.get("client.id", "folio_events")}
        self.producer = {**PRODUCER_DEFAULTS, **self.common, **given.get("producer", {})}
        self.consumer = {**CONSUMER_DEFAULTS, **self.common, **for_consumer}
        if self.consumer.get("group.protocol") == "consumer":
            for name in _CLASSIC_ONLY:
                if name not in common and name not in for_consumer:
                    self.consumer.pop(name, None)

    def check(self) -> list[CheckMessage]:
        """Name what would lose events, and what librdkafka does not take."""
        found: list[CheckMessage] = []

        def error(message: str, hint: str, number: int) -> None:
            found.append(Error(message, hint=hint, id=f"folio_events.E{number:03}"))

        if not self.common.get("bootstrap.servers") and not self.common.get("metadata.broker.list"):
            error(
                "The Kafka broker has no 'bootstrap.servers'.",
                "Put it into FOLIO_EVENTS['BROKER']['OPTIONS'], or set KAFKA_HOST and use settings_from_env().",
                20,
            )
        for name in ("enable.auto.commit", "enable.auto.offset.store"):
            if _is_true(self.consumer[name]):
                error(
                    f"The Kafka option {name!r} is on.",
                    "Remove it: offsets are committed after the receivers' transaction, or events get lost.",
                    21,
                )
        if str(self.producer["acks"]) not in ("all", "-1"):
            error(
                "The Kafka option 'acks' is not 'all'.",
                "Remove it, or acknowledged events can get lost.",
                22,
            )
        if not _is_true(self.producer["enable.idempotence"]):
            error(
                "The Kafka option 'enable.idempotence' is off.",
                "Remove it, or a retry can double events and change their order.",
                23,
            )
        try:
            validate_group_instance_id(self.consumer.get("group.instance.id"))
        except ConfigurationError as refused:
            error(
                f"The Kafka option 'group.instance.id' is blank: {refused}.",
                "Give each process its own, or leave it out.",
                25,
            )
        if not found and (refusal := self._refusal()):
            error(
                f"librdkafka refuses the options of the Kafka broker: {refusal}.",
                "The names and values are those of librdkafka's CONFIGURATION.md.",
                24,
            )
        return found

    def _refusal(self) -> str:
        """Why no client can be made with the options, if so."""
        try:
            # Without a server to connect to, a client is made and gone in a millisecond.
            for make, options in (
                (Producer, self.producer),
                (Consumer, {**self.consumer, "group.id": "check"}),
                (AdminClient, self.common),
            ):
                make({**options, "bootstrap.servers": ""}, logger=silent)
        except KafkaException as error:
            return str(error.args[0].str())
        except (TypeError, ValueError) as error:
            return str(error)
        return ""


def _is_true(value: object) -> bool:
    # As librdkafka reads it.
    return str(value).lower() in ("true", "t", "1")
