"""How long an event takes with the settings that a project begins with."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path

import pytest

from folio_events.models import BrokerRecord, InboxEntry, OutboxMessage
from tests.real_commands import RealCommand, environment
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)


def parts(message: OutboxMessage) -> tuple[float, float, float]:
    """Seconds until the broker had a message, until the relay had noted it, until it was handled."""
    record = BrokerRecord.objects.get(pk=("folio.library.book", *place(message)))
    stored = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    handled_at = InboxEntry.objects.get(event_id=message.event_id).handled_at
    return (
        (stored - message.occurred_at).total_seconds(),
        (message.publication.published_at - stored).total_seconds(),
        (handled_at - stored).total_seconds(),
    )


def place(message: OutboxMessage) -> tuple[int, int]:
    return message.publication.partition, message.publication.offset


def test_a_default_run_brings_a_change_to_its_receiver_within_three_seconds(
    tmp_path: Path,
) -> None:
    """Its waits for the relay and for the consumer can be told apart afterwards."""
    env = environment(apps=["tests.obstinate"], OBSTINATE_FOLDER=str(tmp_path))
    relay = RealCommand(tmp_path, "relay_events", env=env)
    consumer = RealCommand(tmp_path, "consume_events", "--group", "events", env=env)
    try:
        for number in range(6):
            Book.objects.create(title=f"volume {number}")
            consumer.wait_for(lambda count=number: InboxEntry.objects.count() > count)  # type: ignore[misc]
        relay.wait_for(lambda: OutboxMessage.objects.filter(publication=None).count() == 0)
        # The first has waited for the processes to start.
        found = [parts(m) for m in OutboxMessage.objects.order_by("id")[1:]]
    finally:
        consumer.process.kill()
        relay.process.kill()
    to_the_broker, noted, to_the_receiver = map(statistics.median, zip(*found, strict=True))
    assert to_the_broker + to_the_receiver < 3
    assert min(noted, to_the_receiver) > -0.01
