"""The memory broker: what tests may ask of it beyond the port."""

from __future__ import annotations

import pytest

from folio_events.brokers.base import Acknowledgement, TopicSpec
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import BrokerUnavailableError, MessageTooLargeError
from folio_events.message import Message


def message(value: bytes = b"x") -> Message:
    return Message("t", b"key", value, [])


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker({})
    broker.create_topics([TopicSpec("t", 2, 1)])
    return broker


def test_a_broker_that_is_set_unavailable_is_down(broker: MemoryBroker) -> None:
    """Publishing reports it, everything else raises it, and nothing is put down."""
    subscription = broker.subscribe("group", ["t"], lambda _places: {})
    broker.available = False

    reports = broker.publish([message(), message()], timeout=1)
    assert [type(report) for report in reports] == [BrokerUnavailableError] * 2
    with pytest.raises(BrokerUnavailableError):
        broker.missing_topics(["t"])
    with pytest.raises(BrokerUnavailableError):
        broker.create_topics([TopicSpec("new", 1, 1)])
    with pytest.raises(BrokerUnavailableError):
        subscription.poll(10, 0.0)

    broker.available = True
    assert broker.records("t") == []
    assert broker.missing_topics(["t", "new"]) == {"new"}
    (report,) = broker.publish([message()], timeout=1)
    assert isinstance(report, Acknowledgement)
    assert len(subscription.poll(10, 0.0)) == 1


def test_its_records_can_be_looked_at(broker: MemoryBroker) -> None:
    """All of a topic, partition after partition; none of a topic that does not exist."""
    broker.publish([message(b"1"), message(b"2")], timeout=1)

    assert [record.value for record in broker.records("t")] == [b"1", b"2"]
    assert broker.records("other") == []


def test_its_limit_can_be_set() -> None:
    """A test of large messages need not make any."""
    broker = MemoryBroker({"max_message_bytes": 10})
    broker.create_topics([TopicSpec("t", 1, 1)])

    small, large = broker.publish([message(b"1234567"), message(b"12345678")], timeout=1)

    assert isinstance(small, Acknowledgement)
    assert isinstance(large, MessageTooLargeError)
    assert broker.max_message_bytes("t") == 10
