"""Purge deletes what is settled and old, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from folio_events import deliveries, publish, relay, withheld
from folio_events.brokers.memory import MemoryBroker
from folio_events.exceptions import OutboxFullError
from folio_events.models import (
    BrokerRecord,
    Delivery,
    InboxEntry,
    OutboxMessage,
    Publication,
    RelayGap,
    WithheldMessage,
)
from folio_events.retention import Purge, horizon, purge
from folio_events.testing import deliver_all
from tests.note_topic import Mood, NoteTopic, note_receiver
from tests.outbox_writer import outbox_writers

pytestmark = pytest.mark.django_db(transaction=True)


def note(number: int, key: str = "k", text: str = "") -> None:
    publish("library.note", key=key, payload={"number": number, "text": text})


def drain() -> None:
    """Publish what is there; the second pass finds that nothing comes below it."""
    relay.drain()
    relay.drain()


def grow_old() -> None:
    """All that is there was written a year ago."""
    past = timezone.now() - timedelta(days=365)
    OutboxMessage.objects.update(occurred_at=past)
    InboxEntry.objects.update(handled_at=past)
    Delivery.objects.exclude(resolved_at=None).update(resolved_at=past)
    BrokerRecord.objects.update(timestamp=0)


def test_published_messages_go_when_they_are_old(memory_broker: MemoryBroker) -> None:
    """Their publications go with them."""
    for number in range(5):
        note(number)
    drain()
    assert purge() == Purge()
    grow_old()
    assert purge().outbox_messages == 5
    assert not OutboxMessage.objects.exists()
    assert not Publication.objects.exists()


def test_a_purge_goes_in_batches(
    memory_broker: MemoryBroker, folio_events: Callable[..., None]
) -> None:
    """More rows than one transaction takes are deleted all the same."""
    folio_events(PURGE_BATCH_SIZE=2)
    for number in range(5):
        note(number)
    drain()
    grow_old()
    assert purge().outbox_messages == 5


def test_unpublished_messages_stay_however_old(memory_broker: MemoryBroker) -> None:
    """Age alone deletes nothing."""
    note(0)
    drain()
    note(1)
    grow_old()
    assert purge().outbox_messages == 1
    assert OutboxMessage.objects.count() == 1


def test_nothing_from_a_withheld_message_on_is_deleted(memory_broker: MemoryBroker) -> None:
    """What a person has not settled stays, with all that came later."""
    note(0, key="other")
    note(1, text="x" * 2_000_000)
    note(2, key="other")
    drain()
    grow_old()
    assert purge().outbox_messages == 1
    refused = WithheldMessage.objects.get(state="refused")
    withheld.discard([refused.pk], reason="too large")
    assert purge().outbox_messages == 2


@pytest.mark.postgres
def test_nothing_above_a_gap_is_deleted(memory_broker: MemoryBroker) -> None:
    """A row that commits late keeps its place, however old it is by then."""
    note(0)
    drain()
    with outbox_writers(1) as (late,):
        late.append()
        note(2)
        drain()
        assert RelayGap.objects.exists()
        grow_old()
        assert purge().outbox_messages == 1
        assert horizon() == RelayGap.objects.get().first_id
        late.commit()
    drain()
    grow_old()
    assert purge().outbox_messages == 2


def test_settled_deliveries_and_inbox_entries_go_when_they_are_old(notes: NoteTopic) -> None:
    """Open deliveries stay."""
    note_receiver("picky", Mood(0, 1), order="none")
    notes.put_all("abc")
    notes.consume()
    first, second = Delivery.objects.order_by("id")
    deliveries.discard([first.pk], reason="not needed")
    grow_old()
    done = purge()
    assert (done.inbox_entries, done.deliveries) == (1, 1)
    assert Delivery.objects.get() == second


def test_the_database_broker_keeps_what_a_group_has_not_read(only_test_receivers: None) -> None:
    """Purge follows the slowest group."""
    note_receiver("fast")
    note(0)
    deliver_all()
    note_receiver("slow", group="slow")
    grow_old()
    assert purge().broker_records == 0
    deliver_all()
    grow_old()
    assert purge().broker_records == 1


def test_the_command_says_what_it_deleted(
    memory_broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each table."""
    note(0)
    drain()
    grow_old()
    call_command("purge_events")
    assert "outbox messages: 1 deleted" in capsys.readouterr().out


def test_a_full_outbox_refuses_the_write(
    memory_broker: MemoryBroker,
    folio_events: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hard limit counts what waits, not what is kept; draining makes room."""
    monkeypatch.setattr("folio_events.outbox._BACKLOG_LIFETIME", 0.0)
    folio_events(OUTBOX_HARD_LIMIT=3)
    for number in range(3):
        note(number)
    with pytest.raises(OutboxFullError, match="OUTBOX_HARD_LIMIT is 3"):
        note(3)
    assert OutboxMessage.objects.count() == 3
    drain()
    note(4)
    assert OutboxMessage.objects.count() == 4


def test_a_filling_outbox_is_told(
    memory_broker: MemoryBroker,
    folio_events: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The soft limit writes a warning and refuses nothing."""
    monkeypatch.setattr("folio_events.outbox._BACKLOG_LIFETIME", 0.0)
    folio_events(OUTBOX_SOFT_LIMIT=1)
    note(0)
    note(1)
    assert "1 outbox messages" in caplog.text
