"""``purge_events`` says what it would delete, and what it deleted."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from folio_events import publish, relay
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import OutboxMessage
from folio_events.operations.retention import Purge, purge
from tests.note_topic import NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)


def old_messages(count: int) -> None:
    for number in range(count):
        publish("library.note", key="k", payload={"number": number})
    relay.drain()
    relay.drain()
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(days=365))


def run(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("purge_events", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_a_dry_run_counts_and_deletes_nothing(memory_broker: MemoryBroker) -> None:
    """As many rows as the purge after it deletes."""
    old_messages(5)
    assert "outbox messages: 5 to delete" in run("--dry-run")
    assert OutboxMessage.objects.count() == 5
    assert "outbox messages: 5 deleted" in run()
    assert not OutboxMessage.objects.exists()


def test_each_batch_is_told(memory_broker: MemoryBroker, folio_events: object) -> None:
    """So that a long purge shows how far it is."""
    folio_events(PURGE_BATCH_SIZE=2)  # type: ignore[operator]
    old_messages(5)
    told: list[int] = []
    assert purge(dry_run=True, told=told.append) == Purge(outbox_messages=5)
    assert told == []
    purge(told=told.append)
    assert [count for count in told if count] == [2, 2, 1]


def test_a_dry_run_counts_every_table_as_a_purge_does(notes: NoteTopic) -> None:
    """Inbox entries by their own age."""
    from folio_events.models import InboxEntry

    note_receiver("one")
    notes.put_all("abc")
    notes.consume()
    InboxEntry.objects.update(handled_at=timezone.now() - timedelta(days=365))
    assert purge(dry_run=True) == purge() == Purge(inbox_entries=3)


@pytest.mark.postgres
def test_the_sizes_of_the_tables_are_shown_first(memory_broker: MemoryBroker) -> None:
    """With their indexes, in units that a person reads."""
    sizes = [line for line in run("--dry-run") if line.startswith("folio_events_outboxmessage: ")]
    assert len(sizes) == 1
    assert "B" in sizes[0]
