"""Fixtures of the tests that need a database."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folio_events.brokers import get_broker
from folio_events.brokers.memory import MemoryBroker
from tests.faulty_broker import FaultyBroker
from tests.note_topic import NoteTopic


@pytest.fixture
def faulty_broker(folio_events: Callable[..., None]) -> FaultyBroker:
    """The setting BROKER names a broker whose faults the test plants."""
    folio_events(BROKER={"BACKEND": "tests.faulty_broker.FaultyBroker"})
    broker = get_broker()
    assert isinstance(broker, FaultyBroker)
    return broker


@pytest.fixture
def notes(memory_broker: MemoryBroker, only_test_receivers: None) -> NoteTopic:
    """A topic of its own, without any receiver but those of the test."""
    return NoteTopic(memory_broker)
