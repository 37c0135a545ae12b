"""Kafka does not answer: who waits for it waits ever longer, at little cost, and not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from folio_events import Event, receiver
from folio_events.brokers.kafka import KafkaBroker
from folio_events.brokers.memory import MemoryBroker
from folio_events.conf import get_settings
from folio_events.consumer import Consumer
from folio_events.exceptions import BrokerUnavailableError, ConfigurationError
from folio_events.models import ConsumerOffset
from tests.contract.stage import Reader, message

NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


class Clock(threading.Event):
    """Notes how long it was to be waited, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


@pytest.mark.django_db(transaction=True)
def test_a_consumer_waits_ever_longer_and_ends_with_the_offset_unmoved(
    only_test_receivers: None,
    folio_events: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From POLL_FAILURE_SLEEP, one second, doubled up to 30 s, with jitter; then the error."""

    @receiver("library.letter", name="tests.letters", group="letters")
    def note(event: Event) -> None: ...

    monkeypatch.setattr("folio_events.brokers.kafka.topics.ADMIN_TIMEOUT", 0.1)
    assert get_settings().POLL_FAILURE_SLEEP == 1.0
    consumer = Consumer("letters", broker=KafkaBroker(NOWHERE))
    clock = Clock()

    with pytest.raises(BrokerUnavailableError, match="refused"):
        consumer.run(clock)

    assert len(clock.pauses) == get_settings().CONSECUTIVE_ERRORS_LIMIT - 1
    longest = [min(2.0**number, 30.0) for number in range(len(clock.pauses))]
    shares = [pause / most for pause, most in zip(clock.pauses, longest, strict=True)]
    assert all(0.5 <= share <= 1 for share in shares), clock.pauses
    assert len(set(shares)) > 1, "all members would come back at the same time"
    assert not ConsumerOffset.objects.exists()


@pytest.mark.parametrize("who", ["relay", "consumer"])
def test_waiting_for_kafka_costs_little_cpu(who: str) -> None:
    """librdkafka's own attempts to connect are spread out too."""
    broker = KafkaBroker({**NOWHERE})
    reader = Reader(broker, ["^t$"])
    began, cpu = time.monotonic(), time.process_time()

    if who == "relay":
        (report,) = broker.publish([message("t")], timeout=3)
        assert isinstance(report, BrokerUnavailableError)
    else:
        assert reader.poll(timeout=3.0) == []

    spent, waited = time.process_time() - cpu, time.monotonic() - began
    reader.close()
    broker.close()
    assert waited >= 2.9
    assert spent < 0.2 * waited


@pytest.mark.django_db(transaction=True)
def test_a_database_without_the_tables_ends_the_consumer_at_once(only_test_receivers: None) -> None:
    """Waiting would not make them, and nothing is read before they are there."""

    @receiver("library.letter", name="tests.letters", group="letters")
    def note(event: Event) -> None: ...

    clock = Clock()
    with without_offsets_table(), pytest.raises(ConfigurationError, match=r"manage\.py migrate"):
        Consumer("letters", broker=MemoryBroker({})).run(clock)

    assert clock.pauses == []


@contextmanager
def without_offsets_table() -> Iterator[None]:
    table = ConsumerOffset._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")
