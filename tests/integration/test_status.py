"""What waits, what failed and who is left alone can be asked for, and Prometheus asks."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import RequestFactory
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from folio_events import CircuitBreaker, RetryPolicy, publish
from folio_events.metrics import metrics
from folio_events.models import OutboxMessage, RelayGap
from folio_events.monitoring.status import status
from folio_events.relay import drain
from tests.faulty_broker import FaultyBroker
from tests.note_topic import Mood, NoteTopic, note_receiver

pytestmark = pytest.mark.django_db(transaction=True)
Labels = frozenset[tuple[str, str]]


def scraped() -> dict[tuple[str, Labels], float]:
    """The samples of one scrape, by name and labels without the database."""
    page = metrics(RequestFactory().get("/metrics")).content.decode()
    return {
        (
            sample.name,
            frozenset((k, v) for k, v in sample.labels.items() if k != "database"),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> float | None:
    return scraped().get((f"folio_events_{name}", frozenset(labels.items())))


def grow_old(seconds: float) -> None:
    OutboxMessage.objects.update(occurred_at=timezone.now() - timedelta(seconds=seconds))


def test_nothing_waits_in_an_empty_database() -> None:
    """Zero, and not an absent metric, so that alarms can be set on it."""
    now = status()
    assert (now.waiting, now.oldest_age, now.deliveries) == (0, 0.0, {})
    assert sample("outbox_waiting") == 0
    assert sample("outbox_oldest_seconds") == 0
    assert sample("withheld_messages", state="refused") == 0


def test_the_backlog_and_its_age_show_until_they_are_published(
    faulty_broker: FaultyBroker,
) -> None:
    """A broker that is away lets both grow; the drain after it ends them."""
    publish("library.note", key="a", payload={})
    publish("library.note", key="b", payload={})
    grow_old(500)
    assert sample("outbox_waiting") == 2
    assert 500 <= (sample("outbox_oldest_seconds") or 0) < 560
    drain()
    assert (sample("outbox_waiting"), sample("outbox_oldest_seconds")) == (0, 0)


def test_a_row_that_the_relay_holds_back_counts(faulty_broker: FaultyBroker) -> None:
    """It lies below the cursor, among rows that were published."""
    rows = [publish("library.note", key=key, payload={}) for key in "abc"]
    faulty_broker.acknowledges = lambda message: message.key != b"b"
    drain()
    assert RelayGap.objects.exists()
    OutboxMessage.objects.filter(event_id=rows[1].id).update(
        occurred_at=timezone.now() - timedelta(seconds=90)
    )
    assert status().waiting == 1
    assert 90 <= status().oldest_age < 150


def test_refused_messages_show_with_their_followers(faulty_broker: FaultyBroker) -> None:
    """Each by its state."""
    for key in "aab":
        publish("library.note", key=key, payload={})
    faulty_broker.refuses = lambda message: message.key == b"a"
    drain()
    assert sample("withheld_messages", state="refused") == 1
    assert sample("withheld_messages", state="waiting") == 1


def test_open_deliveries_show_by_receiver_and_state(notes: NoteTopic) -> None:
    """Dead letters and those that wait; what is resolved does not count."""
    note_receiver("one", Mood(0), retry=RetryPolicy(attempts=1))
    notes.put_all("aab")
    notes.consume()
    assert sample("deliveries", receiver="one", state="dead") == 1
    assert sample("deliveries", receiver="one", state="retrying") == 1


def test_an_open_breaker_shows_until_its_receiver_works_again(notes: NoteTopic) -> None:
    """With the number of events in a row that it failed on."""
    mood = Mood(*range(3))
    note_receiver("one", mood, breaker=CircuitBreaker(failures=3, pause=60))
    notes.put_all("abc")
    notes.consume()
    assert sample("breaker_open", receiver="one") == 1
    assert sample("receiver_failures", receiver="one") == 3
