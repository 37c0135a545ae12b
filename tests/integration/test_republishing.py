"""Messages that the broker has lost are published again from the outbox, under their ids."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from folio_events import publish
from folio_events.brokers.memory import MemoryBroker
from folio_events.models import OutboxMessage, Publication, RelayGap
from folio_events.operations.republishing import republish
from folio_events.relay import drain
from tests.faulty_broker import FaultyBroker

pytestmark = pytest.mark.django_db(transaction=True)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def record(topic: str, *keys: str) -> None:
    for key in keys:
        publish(topic, key=key, payload={"new": {"id": key}}, type="CREATE")


def drained() -> int:
    count = 0
    while done := drain().published:
        count += done
    return count


def test_a_topic_is_published_again_in_its_order(memory_broker: MemoryBroker) -> None:
    """Same ids and bytes, other topics and earlier messages left out; each once."""
    record("library.book", "old")
    drained()
    moment = timezone.now()
    record("library.book", "1", "2")
    record("library.chapter", "9")
    record("library.book", "1")
    drained()
    before = dict(Publication.objects.values_list("outbox_message", "offset"))
    wanted = list(
        OutboxMessage.objects.filter(topic="library.book")
        .order_by("id")
        .values_list("id", flat=True)
    )[1:]

    assert republish("library.book", moment, dry_run=True) == 3
    assert republish("library.book", moment, reason="a topic was deleted") == 3
    assert drained() == 3

    after = dict(Publication.objects.values_list("outbox_message", "offset"))
    assert {pk for pk in after if after[pk] != before[pk]} == set(wanted)
    places = Publication.objects.filter(outbox_message__in=wanted)
    of_one = places.filter(outbox_message__key="1").order_by("outbox_message_id")
    assert [p.offset for p in of_one] == sorted(p.offset for p in of_one)
    assert not RelayGap.objects.exists()
    assert drained() == 0


def test_nothing_is_done_without_a_reason_or_a_row(memory_broker: MemoryBroker) -> None:
    """The command says so, and counts on a dry run."""
    record("library.book", "1")
    drained()
    with pytest.raises(CommandError, match="Say why"):
        call_command("republish_events", topic="library.book", since=LONG_AGO)
    out = StringIO()
    call_command("republish_events", topic="library.book", since=LONG_AGO, dry_run=True, stdout=out)
    assert out.getvalue() == "1 messages would be published again\n"
    assert republish("library.chapter", LONG_AGO, reason="a test") == 0
    assert drained() == 0


def test_a_topic_whose_messages_time_out_is_looked_for_again() -> None:
    """A deleted one is created by the next drain, also where the producer never learns of it."""
    broker = FaultyBroker({})
    record("library.book", "1")
    assert drain(broker=broker).published == 1
    topic = Publication.objects.get().topic
    broker.delete_topics([topic])
    broker.known_topics.add(topic)  # somebody else has deleted it
    record("library.book", "2")
    broker.acknowledges = lambda _message: False
    assert drain(broker=broker).unavailable
    broker.acknowledges = lambda _message: True

    assert drain(broker=broker).published == 1
    assert broker.missing_topics([topic]) == set()


def test_a_topic_that_nothing_names_is_refused(memory_broker: MemoryBroker) -> None:
    """No count of 0 for a misspelt one; one without a declaration counts while it has rows."""
    record("library.note", "1")
    drained()
    assert republish("library.note", LONG_AGO, dry_run=True) == 1
    with pytest.raises(ValueError, match=r"topic 'library\.notes'; did you mean 'library\.note'\?"):
        republish("library.notes", LONG_AGO, dry_run=True)
    with pytest.raises(CommandError, match=r"did you mean .* Known: .*library\.book"):
        call_command("republish_events", topic="library.notes", since=LONG_AGO, reason="a test")
