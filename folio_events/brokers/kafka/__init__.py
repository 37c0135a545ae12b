"""The Kafka broker, by confluent-kafka (librdkafka)."""

from __future__ import annotations

from folio_events.brokers.kafka.broker import KafkaBroker
from folio_events.brokers.kafka.subscription import KafkaSubscription

__all__ = ["KafkaBroker", "KafkaSubscription"]
