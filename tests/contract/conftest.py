"""The brokers that the contract suites run against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from folio_events.brokers.base import Broker
from folio_events.brokers.database import DatabaseBroker
from folio_events.brokers.memory import MemoryBroker
from tests.conftest import kafka_options
from tests.contract.stage import Stage

#: Quicker than a real group needs: a member that comes or goes is noticed soon.
IMPATIENT = {
    "heartbeat.interval.ms": 200,
    "session.timeout.ms": 10_000,
    "topic.metadata.refresh.interval.ms": 300,
}


@pytest.fixture(scope="session")
def shared_kafka() -> Iterator[Broker]:
    """One Kafka broker object for many tests: its producer takes a second to start."""
    from folio_events.brokers.kafka import KafkaBroker

    broker = KafkaBroker(kafka_options(consumer=IMPATIENT))
    yield broker
    broker.close()


@pytest.fixture
def kafka_stage(shared_kafka: Broker) -> Iterator[Stage]:
    """The real Kafka."""
    with ExitStack() as closing:
        yield Stage(shared_kafka, lambda: type(shared_kafka)(shared_kafka.options), closing)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("database", marks=pytest.mark.django_db(transaction=True)),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def stage(request: Any) -> Iterator[Stage]:
    """Each broker in turn."""
    if request.param == "kafka":
        yield request.getfixturevalue("kafka_stage")
        return
    with ExitStack() as closing:
        broker: Broker
        if request.param == "memory":
            broker = MemoryBroker({})
            make: Callable[[], Broker] = lambda: broker  # noqa: E731 - a name for each case
        else:
            broker, make = DatabaseBroker({}), lambda: DatabaseBroker({})
        yield Stage(broker, make, closing)
